"""The tables and the figures of the comparison, from the cells that are computed."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from erk.analysis.plots import COLOURS, GREY, MARKS, panels, png
from erk.calibration.solver_error import ratio
from metrics.jackknife import paired_difference
from scripts.paper.page import Page, Table, best_cells, table_of, write_page
from scripts.studies.comparison_cells import read
from scripts.studies.comparison_plan import FEW, METHODS, MODES, MOST_CHOSEN, Cell
from scripts.studies.rows import Row

NAME = "comparison"
QUALITY = {"digits": "FD", "toy": "sliced W1 to the converged samples"}
LABELS = {"plain": "plain", "auto": "ERK auto", "fixed": "ERK fixed (tuned)",
          "calibrated": "ERK calibrated"}  # fmt: skip
LOOKS = {"plain": ("black", "o"), "auto": (COLOURS[0], MARKS[1]), "fixed": (COLOURS[4], MARKS[2]),
         "calibrated": (COLOURS[1], MARKS[3])}  # fmt: skip
COLUMNS = 5  # of panels
CROWDED = (6, 10)  # budgets whose tick has no number
ORIGIN = ("command", "commit", "device")


def write_all(cells: Sequence[Cell], results: Path) -> list[Path]:
    """Write the page comparison.* and the figures; return the paths written."""
    rows = list(rows_of(cells, results))
    if not rows:
        return []
    data = list(dict.fromkeys(row["data"] for row in rows))
    figures = {}
    for name in data:
        part = [row for row in rows if row["data"] == name]
        large = [row for row in part if _is_large(row, part)]
        figures[f"{NAME}-{name}-error.png"] = _figure(part, "error", "distance to converged")
        figures[f"{NAME}-{name}-quality.png"] = _figure(large, "quality", _quality(name))
    origins = {str(row["made_by"]): row["made_by"] for row in rows}
    missing = len(cells) - len(rows)
    page = Page(
        name=NAME,
        title="Solvers with and without ERK-Guid at equal numbers of evaluations",
        kind=NAME,
        scale=None,
        tables=[table for name in data for table in _tables(name, rows)],
        rows=[{k: v for k, v in row.items() if k != "made_by"} for row in rows],
        notes=[*_notes(rows), *([f"NOT MEASURED YET: {missing} cells."] if missing else [])],
        made_by=list(origins.values()),
        files=list(figures),
    )
    return write_page(results, page, figures)


def rows_of(cells: Sequence[Cell], results: Path) -> Iterator[Row]:
    """Yield one row per computed cell, compared with its plain solver on the same seeds."""
    for cell in cells:
        row = read(cell, results)
        plain = read(cell._replace(mode="plain"), results)
        if row is not None and plain is not None:
            yield _row(cell, row, plain)


def _row(cell: Cell, row: Row, plain: Row) -> Row:
    errors, plain_errors = (
        torch.tensor(one["errors"], dtype=torch.float64) for one in (row, plain)
    )
    gain = ratio(errors, plain_errors)
    change = paired_difference(
        row["quality"], row["replicates"], plain["quality"], plain["replicates"]
    )
    return {
        "data": cell.data, "method": cell.method.name, "mode": cell.mode,
        "budget": cell.budget, "steps": cell.steps, "nfe": cell.nfe, "acts": row["acts"],
        "error": errors.mean().item(),
        "error_se": (errors.std() / math.sqrt(len(errors))).item(),
        "ratio": gain.value, "ratio_se": gain.error,
        "quality": row["quality"], "quality_se": row["quality_se"],
        "quality_minus_plain": change and change.value,
        "quality_minus_plain_se": change and change.error,
        "quality_differs": bool(change and change.exceeds),
        "samples": len(errors), "seeds": row["seeds"],
        "w_stiff": row.get("w_stiff"), "w_con": row.get("w_con"),
        **{name: row[name] for name in ORIGIN},
        "settings": row["settings"],
        "made_by": {name: row[name] for name in (*ORIGIN, "versions")},
    }  # fmt: skip


def _quality(data: str) -> str:
    return QUALITY.get(data, QUALITY["digits"])


def _is_large(row: Row, rows: Sequence[Row]) -> bool:
    """Return whether a row has the most samples: FD and W1 of others would not compare."""
    return bool(row["samples"] == max(one["samples"] for one in rows))


def _tables(data: str, rows: Sequence[Row]) -> list[Table]:
    part = [row for row in rows if row["data"] == data]
    values: list[tuple[str, Callable[[Row], Any]]] = [
        ("Distance to the converged solution from the same noise, mean ± standard error; bold: "
         "least of the column.", lambda row: (row["error"], row["error_se"])),
        ("The same distance over the plain solver's, ± standard error.",
         lambda row: None if row["mode"] == "plain" else (row["ratio"], row["ratio_se"])),
        (f"{_quality(data)} ± standard error; bold: least of the column.",
         lambda row: (row["quality"], row["quality_se"]) if _is_large(row, part) else None),
    ]  # fmt: skip
    return [
        *(_table(f"{data}. {caption}", part, value) for caption, value in values),
        _winners(data, part),
    ]


def _table(caption: str, rows: Sequence[Row], value: Callable[[Row], Any]) -> Table:
    """Lay out one value per solver and mode (rows) and budget (columns)."""
    lines = []
    for method in METHODS:
        for mode in MODES:
            line = [r for r in rows if (r["method"], r["mode"]) == (method.name, mode)]
            values = {f"NFE {r['budget']}": value(r) for r in line}
            if any(r["acts"] or mode == "plain" for r in line) and any(values.values()):
                lines.append({"solver": method.name, "ERK-Guid": mode} | values)
    columns = [f"NFE {budget}" for budget in sorted({row["budget"] for row in rows})]
    bold: list[tuple[int, str]] = []
    if "bold" in caption:
        bold = best_cells(lines, dict.fromkeys(columns, "low"), [0] * len(lines))
    return Table(caption=caption, columns=["solver", "ERK-Guid", *columns], rows=lines, bold=bold)


def _winners(data: str, rows: Sequence[Row]) -> Table:
    """List the best plain solver and the best of all for every budget, by distance."""
    lines = []
    for budget in sorted({row["budget"] for row in rows}):
        part = [row for row in rows if row["budget"] == budget]
        plain = min((r for r in part if r["mode"] == "plain"), key=lambda r: r["error"])
        best = min(part, key=lambda r: r["error"])
        lines.append({
            "NFE": budget,
            "best plain solver": plain["method"],
            "its distance": (plain["error"], plain["error_se"]),
            "best of all": f"{best['method']}, {best['mode']}",
            "distance": (best["error"], best["error_se"]),
            "best / best plain": best["error"] / plain["error"],
        })  # fmt: skip
    return table_of(f"{data}. Which to use when.", lines)


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        "A column is a budget: every solver takes as many steps as fit into it (Heun with the EDM "
        "schedule an odd number of evaluations; nfe in the csv).",
        "auto: no data. calibrated: coefficients per step (erk calibrate); fixed: w_stiff and "
        "w_con (erk calibrate --correction weights; in the csv), both on other seeds and up to "
        f"{MOST_CHOSEN} evaluations; above {FEW} the fixed weights are those chosen "
        f"at {FEW}, where that cell was computed with all its samples.",
        "Modes that do nothing at any budget are left out: their rows are the plain solver's.",
        "The least of many rows is flattered by the choice: differences below two standard errors "
        "mean nothing.",
    ]
    for mode in MODES[1:]:
        acting = [row for row in rows if row["mode"] == mode and row["acts"]]
        if acting:
            notes.append(_verdict(mode, acting, rows))
    notes.append("FD and W1 are shown of the largest number of samples alone; the csv has all.")
    return notes


def _verdict(mode: str, acting: Sequence[Row], rows: Sequence[Row]) -> str:
    """Count the cells in which a mode is better and worse than plain, and name the worse."""
    better = sum(row["ratio"] + 2 * row["ratio_se"] < 1 for row in acting)
    worse = [row for row in acting if row["ratio"] - 2 * row["ratio_se"] > 1]
    by_data = {row["data"]: [r for r in rows if r["data"] == row["data"]] for row in acting}
    differing = [r for r in acting if r["quality_differs"] and _is_large(r, by_data[r["data"]])]
    lower = sum(r["quality_minus_plain"] < 0 for r in differing)
    higher = [r for r in differing if r["quality_minus_plain"] > 0]
    return (
        f"{mode}: of {len(acting)} cells in which it acts, nearer to the converged "
        f"solution by more than two standard errors in {better}, farther in {len(worse)}"
        f"{_names(worse)}; FD or W1 lower beyond noise in {lower}, "
        f"higher in {len(higher)}{_names(higher)}."
    )


def _names(rows: Sequence[Row]) -> str:
    names = "; ".join(f"{r['data']}, {r['method']}, NFE {r['budget']}" for r in rows)
    return f" ({names})" if names else ""


def _figure(rows: Sequence[Row], field: str, label: str) -> bytes:
    """Plot a panel per solver, a curve per mode; dotted: the best plain solver per budget."""
    methods = [m.name for m in METHODS if any(row["method"] == m.name for row in rows)]
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    plain = [row for row in rows if row["mode"] == "plain"]
    least = {row["budget"]: row[field] for row in sorted(plain, key=lambda r: -r[field])}
    with panels(columns, 2.5 * lines + 0.4, lines, sharex=True, sharey=True) as (figure, axes):
        figure.set_figwidth(2.3 * columns + 0.8)
        for i, name in enumerate(methods):
            axis = axes[i // columns, i % columns]
            _panel(axis, [row for row in rows if row["method"] == name], field, least)
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("evaluations (NFE)")
        for row in axes:
            row[0].set_ylabel(label)
        for axis in axes.flat[len(methods) :]:
            axis.set_visible(False)
        handles = _legend(axes)
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=len(handles)
        )  # fmt: skip
        return png(figure)


def _panel(axis: Axes, rows: Sequence[Row], field: str, least: dict[int, float]) -> None:
    budgets = sorted(least)
    axis.plot(budgets, [least[b] for b in budgets], ":", color=GREY, label="best plain solver")
    for mode in MODES:
        curve = [r for r in rows if r["mode"] == mode and (r["acts"] or mode == "plain")]
        if curve:
            colour, mark = LOOKS[mode]
            x, y, error = zip(
                *sorted((r["nfe"], r[field], r[f"{field}_se"] or 0.0) for r in curve), strict=True
            )
            axis.errorbar(x, y, error, color=colour, marker=mark, markersize=4, linewidth=1.2,
                          capsize=1.5, label=LABELS[mode])  # fmt: skip
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(budgets, [str(b) if b not in CROWDED else "" for b in budgets])
    axis.minorticks_off()


def _legend(axes: Any) -> dict[str, Any]:
    """Collect label -> handle of all panels."""
    pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
    return {
        name: handle
        for handles, names in pairs
        for handle, name in zip(handles, names, strict=True)
    }

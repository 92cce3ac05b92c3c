"""The table and the figures of the comparison with the rivals, from the cells that are there."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from erk.analysis.plots import COLOURS, GREY, MARKS, panels, png
from erk.calibration.solver_error import ratio
from metrics.jackknife import paired_difference
from metrics.table import write
from scripts.paper.render import Block, Page, best_cells, write_page
from scripts.studies.rivals_cells import read
from scripts.studies.rivals_plan import FEW, METHODS, MODES, MOST_CHOSEN, Cell

QUALITY = {"digits": "FD", "toy": "sliced W1 to the converged samples"}
LABELS = {"plain": "plain", "auto": "ERK auto", "fixed": "ERK fixed (tuned)",
          "calibrated": "ERK calibrated"}  # fmt: skip
LOOKS = {"plain": ("black", "o"), "auto": (COLOURS[0], MARKS[1]), "fixed": (COLOURS[4], MARKS[2]),
         "calibrated": (COLOURS[1], MARKS[3])}  # fmt: skip
COLUMNS = 5  # of panels
CROWDED = (6, 10)  # budgets that have a tick without a number
Row = dict[str, Any]


def write_all(cells: Sequence[Cell], results: Path) -> list[Path]:
    """Write rivals.csv, .json, .md, .tex, .html and the figures; the files written."""
    rows = list(rows_of(cells, results))
    if not rows:
        return []
    data = list(dict.fromkeys(row["data"] for row in rows))
    pictures = {}
    for name in data:
        own = [row for row in rows if row["data"] == name]
        pictures[f"rivals-{name}-error.png"] = _picture(own, "error", "distance to converged")
        large = [row for row in own if _is_large(row, own)]
        pictures[f"rivals-{name}-quality.png"] = _picture(large, "quality", _quality(name))
    makers = {str(row["made_by"]): row["made_by"] for row in rows}
    lacking = len(cells) - len(rows)
    page = Page(
        "rivals", "ERK-Guid against its rivals at equal numbers of evaluations", "rivals", None,
        [block for name in data for block in _blocks(name, rows)],
        [{k: v for k, v in row.items() if k != "made_by"} for row in rows],
        [*_notes(rows), *([f"NOT MEASURED YET: {lacking} cells."] if lacking else [])],
        list(makers.values()), list(pictures),
    )  # fmt: skip
    drawn = [write(results / name, png_bytes) for name, png_bytes in pictures.items()]
    return [*write_page(results, page), *drawn]


def rows_of(cells: Sequence[Cell], results: Path) -> Iterator[Row]:
    """One row per cell that is there, beside its plain solver on the same seeds."""
    for cell in cells:
        found = read(cell, results)
        base = read(cell._replace(mode="plain"), results)
        if found is None or base is None:
            continue
        own, plain = (torch.tensor(one["errors"], dtype=torch.float64) for one in (found, base))
        gain = ratio(own, plain)
        change = paired_difference(
            found["quality"], found["replicates"], base["quality"], base["replicates"]
        )
        names = ("command", "commit", "device", "versions")
        yield {
            "data": cell.data, "method": cell.method.name, "mode": cell.mode,
            "budget": cell.budget, "steps": cell.steps, "nfe": cell.nfe, "acts": found["acts"],
            "error": own.mean().item(), "error_se": (own.std() / math.sqrt(len(own))).item(),
            "ratio": gain.value, "ratio_se": gain.error,
            "quality": found["quality"], "quality_se": found["quality_se"],
            "quality_minus_plain": change and change.value,
            "quality_minus_plain_se": change and change.error,
            "quality_differs": bool(change and change.exceeds),
            "samples": len(own), "seeds": found["seeds"],
            "w_stiff": found.get("w_stiff"), "w_con": found.get("w_con"),
            **{k: found[k] for k in names if k != "versions"},
            "settings": found["settings"],
            "made_by": {k: found[k] for k in names},
        }  # fmt: skip


def _quality(data: str) -> str:
    return QUALITY.get(data, QUALITY["digits"])


def _is_large(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row has as many samples as any: FD and W1 of others would not compare."""
    return bool(row["samples"] == max(one["samples"] for one in rows))


def _blocks(data: str, rows: Sequence[Row]) -> list[Block]:
    own = [row for row in rows if row["data"] == data]
    budgets = sorted({row["budget"] for row in own})
    told: list[tuple[str, Callable[[Row], Any]]] = [
        ("Distance to the converged solution from the same noise, mean ± standard error; bold: "
         "least of the column.", lambda row: (row["error"], row["error_se"])),
        ("The same distance over the plain solver's, ± standard error.",
         lambda row: None if row["mode"] == "plain" else (row["ratio"], row["ratio_se"])),
        (f"{_quality(data)} ± standard error; bold: least of the column.",
         lambda row: (row["quality"], row["quality_se"]) if _is_large(row, own) else None),
    ]  # fmt: skip
    blocks = []
    for caption, value in told:
        lines = []
        for method in METHODS:
            for mode in MODES:
                line = [r for r in own if (r["method"], r["mode"]) == (method.name, mode)]
                values = {f"NFE {r['budget']}": value(r) for r in line}
                if any(r["acts"] or mode == "plain" for r in line) and any(values.values()):
                    lines.append({"solver": method.name, "ERK-Guid": mode} | values)
        columns = [f"NFE {budget}" for budget in budgets]
        bold = frozenset[tuple[int, str]]()
        if "bold" in caption:
            bold = best_cells(lines, dict.fromkeys(columns, "low"), [0] * len(lines))
        blocks.append(Block(f"{data}. {caption}", ["solver", "ERK-Guid", *columns], lines, bold))
    return [*blocks, _winners(data, own, budgets)]


def _winners(data: str, rows: Sequence[Row], budgets: Sequence[int]) -> Block:
    """Of every budget the best plain solver and the best of all, by distance."""
    lines = []
    for budget in budgets:
        own = [row for row in rows if row["budget"] == budget]
        plain = min((r for r in own if r["mode"] == "plain"), key=lambda r: r["error"])
        best = min(own, key=lambda r: r["error"])
        lines.append({
            "NFE": budget,
            "best plain solver": plain["method"],
            "its distance": (plain["error"], plain["error_se"]),
            "best of all": f"{best['method']}, {best['mode']}",
            "distance": (best["error"], best["error_se"]),
            "best / best plain": best["error"] / plain["error"],
        })  # fmt: skip
    return Block(f"{data}. Which to use when.", list(lines[0]), lines)


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        "A column is a budget: every solver takes as many steps as fit into it (Heun with the EDM "
        "schedule an odd number of evaluations; nfe in the csv).",
        "auto: no data. calibrated: coefficients per step by erk.study.calibration, fixed: w_stiff "
        "and w_con by erk.study.tuning (in the csv), both on other seeds than these and up to "
        f"{MOST_CHOSEN} evaluations; above {FEW} the fixed weights are those chosen "
        f"at {FEW}, where that cell was made with all its samples.",
        "Modes that do nothing at any budget are left out: their rows are the plain solver's.",
        "The least of many rows is flattered by the choice: differences below two standard errors "
        "mean nothing.",
    ]
    for mode in MODES[1:]:
        acting = [row for row in rows if row["mode"] == mode and row["acts"]]
        if acting:
            better = sum(row["ratio"] + 2 * row["ratio_se"] < 1 for row in acting)
            worse = [row for row in acting if row["ratio"] - 2 * row["ratio_se"] > 1]
            which = "; ".join(f"{r['data']}, {r['method']}, NFE {r['budget']}" for r in worse)
            own = {row["data"]: [r for r in rows if r["data"] == row["data"]] for row in acting}
            told = [r for r in acting if r["quality_differs"] and _is_large(r, own[r["data"]])]
            better_q = sum(r["quality_minus_plain"] < 0 for r in told)
            worse_q = [r for r in told if r["quality_minus_plain"] > 0]
            which_q = "; ".join(f"{r['data']}, {r['method']}, NFE {r['budget']}" for r in worse_q)
            notes.append(
                f"{mode}: of {len(acting)} cells in which it acts, nearer to the converged "
                f"solution by more than two standard errors in {better}, farther in {len(worse)}"
                f"{f' ({which})' if worse else ''}; FD or W1 lower beyond noise in {better_q}, "
                f"higher in {len(worse_q)}{f' ({which_q})' if worse_q else ''}."
            )
    notes.append("FD and W1 are shown of the largest number of samples alone; the csv has all.")
    return notes


def _picture(rows: Sequence[Row], field: str, label: str) -> bytes:
    """A panel per solver, a curve per mode; dotted: the best plain solver of each budget."""
    methods = [m.name for m in METHODS if any(row["method"] == m.name for row in rows)]
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    plain = [row for row in rows if row["mode"] == "plain"]
    least = {row["budget"]: row[field] for row in sorted(plain, key=lambda r: -r[field])}
    budgets = sorted(least)
    with panels(columns, 2.5 * lines + 0.4, lines, sharex=True, sharey=True) as (figure, axes):
        figure.set_figwidth(2.3 * columns + 0.8)
        for i, name in enumerate(methods):
            axis = axes[i // columns, i % columns]
            axis.plot(budgets, [least[b] for b in budgets], ":", color=GREY,
                      label="best plain solver")  # fmt: skip
            for mode in MODES:
                own = [r for r in rows if r["method"] == name and r["mode"] == mode
                       and (r["acts"] or mode == "plain")]  # fmt: skip
                if own:
                    colour, mark = LOOKS[mode]
                    x, y, error = zip(
                        *sorted((r["nfe"], r[field], r[f"{field}_se"] or 0.0) for r in own),
                        strict=True,
                    )
                    axis.errorbar(x, y, error, color=colour, marker=mark, markersize=4,
                                  linewidth=1.2, capsize=1.5, label=LABELS[mode])  # fmt: skip
            axis.set(title=name, xscale="log", yscale="log")
            axis.set_xticks(budgets, [str(b) if b not in CROWDED else "" for b in budgets])
            axis.minorticks_off()
        for axis in axes[-1]:
            axis.set_xlabel("evaluations (NFE)")
        for row in axes:
            row[0].set_ylabel(label)
        for axis in axes.flat[len(methods) :]:
            axis.set_visible(False)
        seen = dict(zip(*reversed(_legend(axes)), strict=True))
        figure.legend(seen.values(), seen, loc="outside lower center", ncols=len(seen))
        return png(figure)


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
    return [h for handles, _ in pairs for h in handles], [n for _, names in pairs for n in names]

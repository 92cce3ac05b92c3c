"""The page of the comparison: tables, verdicts and figures of the cells that are computed."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import SubFigure

from erk.analysis.plots import canvas, look, png
from erk.calibration.solver_error import EVALUATIONS
from metrics.jackknife import Difference, paired_difference, standard_error
from scripts.paper.page import Page, Table, best_cells, table_of, write_page
from scripts.paper.tables import limit
from scripts.studies.comparison_cells import Cells
from scripts.studies.comparison_plan import (
    ALL,
    BEST,
    CONVERGED,
    CORRECTIONS,
    FIRST,
    METHODS,
    MODES,
    MORE,
    PAPER,
    UNCALIBRATED,
    Cell,
    data_of,
    published_sampler,
)
from scripts.studies.rows import Row

NAME = "comparison"
MEASURES = {
    "error": "Mean distance to the converged solution from the same noise",
    "median": "Median distance to the converged solution",
    "quality": "",  # FD or sliced W1
    "accuracy": "Share of the images that the judge takes for the class asked for",
}
RIVALS = (*UNCALIBRATED, "levels")
"""The modes that are no cards."""
FOLDER = re.compile(r" --results[ =]\S+")
SAYS = ("lower beyond noise", "higher beyond noise")

Computed = Mapping[Cell, Row]


def write_all(cells: Sequence[Cell], known: Cells, results: Path) -> list[Path]:
    """Write the page comparison.* and the figures; return the paths written."""
    rows = {cell: _shared(row) for cell in cells if (row := known[cell]) is not None}
    if not rows:
        return []
    names = list(dict.fromkeys(cell.data for cell in rows))
    figures = {f"{NAME}-{name}.png": figure(part_of(rows, data=name)) for name in names}
    missing = len(cells) - len(rows)
    origins = {str(row["made_by"]): row["made_by"] for row in rows.values()}
    page = Page(
        name=NAME,
        title="Solvers with and without ERK-Guid, and cards, at equal numbers of evaluations",
        kind=NAME,
        scale=None,
        tables=[
            *uses(rows), *changes(rows),
            *(table for name in names for table in tables_of(part_of(rows, data=name))),
        ],
        rows=[row_of(cell, row) for cell, row in rows.items()],
        notes=[*NOTES, *([f"NOT MEASURED YET: {missing} cells."] if missing else [])],
        made_by=list(origins.values()),
        files=list(figures),
        finished={cell.name: row for cell, row in rows.items()},
    )  # fmt: skip
    return write_page(results, page, figures)


def _shared(row: Row) -> Row:
    """Return a row whose command has no folder of one machine."""
    made_by = row["made_by"]
    return row | {"made_by": made_by | {"command": FOLDER.sub("", made_by["command"])}}


def row_of(cell: Cell, row: Row) -> Row:
    """Return the numbers of a cell with their standard errors."""
    return {
        "data": cell.data, "method": cell.method.name, "mode": cell.mode, "sampler": sampler(cell),
        "nfe": cell.nfe, "used": row["nfe"],
        **{key: one for name, value in row["values"].items()
           for key, one in ((name, value), (f"{name}_se", value_of(row, name)[1]))},
        "samples": cell.num, "seeds": row["seeds"], "fit_s": row["fit_s"],
    }  # fmt: skip


def part_of(rows: Computed, **fields: Any) -> Computed:
    """Return the rows whose cells have these values."""
    return {cell: row for cell, row in rows.items()
            if all(getattr(cell, name) == value for name, value in fields.items())}  # fmt: skip


def value_of(row: Row, measure: str) -> tuple[float, float | None]:
    """Return a value with its standard error."""
    return row["values"][measure], standard_error(row["replicates"][measure])


def difference(a: Row, b: Row, measure: str) -> Difference:
    """Return a - b of the same seeds."""
    (x, y), (u, v) = ((row["values"][measure], row["replicates"][measure]) for row in (a, b))
    change = paired_difference(x, y, u, v)
    assert change is not None
    return change


def sampler(cell: Cell) -> str:
    """Name a solver and its mode."""
    return cell.mode if cell.mode in (BEST, MORE) else f"{cell.method.name}, {cell.mode}"


def quality(cell: Cell) -> str:
    """Name the measure of quality."""
    return "FD" if hasattr(data_of(cell.data).model, "sha256") else "sliced W1 to the data"


def beyond(changes: Sequence[Difference], sign: int, comparisons: int) -> list[int]:
    """Return the indices of the changes of that sign beyond the noise of so many comparisons."""
    bound = limit(comparisons)
    return [i for i, one in enumerate(changes) if sign * one.value > bound * one.error]


def uses(rows: Computed) -> Iterator[Table]:
    """Yield the table of which sampler to use when: in each row the one that is nearest on average.

    An alternative is any other sampler of the row that has the same data and evaluations.
    """
    rows = {c: r for c, r in rows.items() if c.mode != MORE}  # of four times the seeds
    uncalibrated = {c: r for c, r in rows.items() if c.mode in UNCALIBRATED}
    single = {c: r for c, r in uncalibrated.items() if c.method.solver in ("heun", "dpm2")}
    of_all = {c: r for c, r in uncalibrated.items() if _has_all_solvers(rows, c)}
    given = {c: r for c, r in rows.items() if c._replace(mode="end to end") in rows}
    guides = {c.data: data_of(c.data).guide_model for c in rows}
    most = {  # where cards for single solvers are measured too
        (c.data, c.nfe) for c in rows if c.mode == ("card" if guides[c.data] else "end to end")
    }
    every = {
        c: r for c, r in rows.items()
        if (c.data, c.nfe) in most and part_of(rows, data=c.data, nfe=c.nfe, mode=BEST)
    }  # fmt: skip
    guided = {c: r for c, r in every.items() if guides[c.data]}
    open_ = {c: r for c, r in every.items() if not guides[c.data]}
    cases: list[tuple[str, Computed, Callable[[Cell], str], bool]] = [
        ("Heun or DPM-Solver-2, no calibration", single, lambda c: c.mode, True),
        ("any solver, no calibration", of_all, sampler, False),
        ("a given solver, calibrated", given, lambda c: c.mode, True),
        ("any solver, calibrated, no model guidance", open_, sampler, False),
        ("any solver, calibrated, with model guidance", guided, sampler, False),
    ]
    lines = [
        {"situation": name} | line
        for name, some, option, per_solver in cases
        if (line := _use(some, option, per_solver))
    ]
    if lines:
        yield table_of("Which to use when.", lines)


def _has_all_solvers(rows: Computed, cell: Cell) -> bool:
    """Return whether every solver that fits is computed for a cell's data and evaluations."""
    return all(
        part_of(rows, data=cell.data, nfe=cell.nfe, method=method, mode="plain")
        for method in METHODS
        if method.solver and published_sampler(method, cell.nfe)
    )


def _use(rows: Computed, option: Callable[[Cell], str], per_solver: bool) -> dict[str, str]:
    """Return what is nearest on average, and how it compares with the best alternative.

    Averaged is ln(distance / the best alternative's) over the cases that an option has, of options
    that have at least half of the cases.
    """
    groups: dict[Any, dict[str, Row]] = {}
    for cell, row in rows.items():
        key = cell.data, cell.nfe, cell.method if per_solver else None
        groups.setdefault(key, {})[option(cell)] = row
    groups = {key: one for key, one in groups.items() if len(one) > 1}
    once = {tuple(row["key"] for row in one.values()): one for one in groups.values()}
    several = [*once.values()]
    gains: dict[str, list[float]] = {}
    for one in several:
        for name, row in one.items():
            rest = min(error(other) for key, other in one.items() if key != name)
            gains.setdefault(name, []).append(math.log(error(row) / rest))
    usual = {name: mean(some) for name, some in gains.items() if 2 * len(some) >= len(several)}
    if not usual:
        return {}
    best = min(usual, key=usual.__getitem__)
    wins = sum(min(one, key=lambda name: error(one[name])) == best for one in several)
    pairs = [(one[best], min((row for name, row in one.items() if name != best), key=error))
             for one in several if best in one]  # fmt: skip
    ratios = [error(a) / error(b) for a, b in pairs]
    better = [difference(a, b, "quality") for a, b in pairs]
    counts = [len(beyond(better, sign, len(pairs))) for sign in (-1, 1)]
    says = " and ".join(f"{says} in {n}" for says, n in zip(SAYS, counts, strict=True))
    return {
        "data": ", ".join(dict.fromkeys(key[0] for key in groups)),
        "use": best if 2 * wins > len(several) else f"undecided; on average {best}",
        "because": f"nearest to the converged solution on average, and in {wins} of "
        f"{len(several)} cases; {min(ratios):.2f} to {max(ratios):.2f} of the best alternative's "
        f"distance; FD or W1 {says} of {len(pairs)}",
    }  # fmt: skip


def error(row: Row) -> float:
    """Return the mean distance."""
    value: float = row["values"]["error"]
    return value


def changes(rows: Computed) -> Iterator[Table]:
    """Yield what each mode changes against the plain solver of the same cells."""
    groups: dict[tuple[str, str], dict[str, tuple[Row, Row]]] = {}
    for cell, row in rows.items():
        plain = rows.get(cell._replace(mode="plain"))
        if plain and cell.mode != "plain":  # of equal cells, such as Heun's at 5 and 6, one
            groups.setdefault((cell.data, cell.mode), {})[row["key"]] = row, plain
    count = 2 * sum(map(len, groups.values()))
    lines: list[dict[str, Any]] = []
    for (name, mode), pairs in groups.items():
        ratios = [error(a) / error(b) for a, b in pairs.values()]
        line = {"data": name, "mode": mode, "cells": len(pairs),
                "distance / plain": f"{min(ratios):.2f} to {max(ratios):.2f}"}  # fmt: skip
        for title, measure in (("distance", "error"), ("FD", "quality")):
            changed = [difference(a, b, measure) for a, b in pairs.values()]
            for word, sign in (("lower", -1), ("higher", 1)):
                line[f"{title} {word}"] = len(beyond(changed, sign, count))
        lines.append(line)
    if lines:
        yield table_of(
            "What each mode changes against the plain solver of the same data and evaluations: "
            f"cells whose distance or FD (W1) is lower or higher beyond {limit(count):.2f} paired "
            f"standard errors, the level of 95 % for all {count} comparisons (Bonferroni).", lines,
        )  # fmt: skip


def tables_of(rows: Computed) -> Iterator[Table]:
    """Yield the tables of one data: the verdict, then one per measure."""
    first = next(iter(rows))
    for mode in (BEST, MORE):
        yield from verdict(rows, mode)
    for measure, words in MEASURES.items():
        if measure in rows[first]["values"]:
            yield grid(rows, measure, f"{first.data}. {words or quality(first)} ± standard error; "
                       "bold: best of the column.")  # fmt: skip


def grid(rows: Computed, measure: str, caption: str) -> Table:
    """Lay out one value per solver and mode (rows) and evaluations (columns)."""
    lines: list[dict[str, Any]] = []
    for method in METHODS:
        for mode in MODES:
            line = part_of(rows, method=method, mode=mode)
            values = {f"NFE {cell.nfe}": value_of(row, measure) for cell, row in line.items()}
            lines += [{"solver": method.name, "mode": mode} | values] if values else []
    columns = [f"NFE {nfe}" for nfe in ALL if part_of(rows, nfe=nfe)]
    best = dict.fromkeys(columns, "high" if measure == "accuracy" else "low")
    return Table(caption=caption, columns=["solver", "mode", *columns], rows=lines,
                 bold=best_cells(lines, best, [0] * len(lines)))  # fmt: skip


def verdict(rows: Computed, mode: str) -> Iterator[Table]:
    """Yield the cards of a mode against the best rival at every n, in distance and in quality."""
    titles = {"error": "distance", "quality": quality(next(iter(rows)))}
    lines: list[dict[str, Any]] = []
    compared: dict[str, list[Difference]] = {measure: [] for measure in titles}
    for nfe in ALL:
        card = next(iter(part_of(rows, nfe=nfe, mode=mode).values()), None)
        rivals = {c: r for c, r in part_of(rows, nfe=nfe).items() if c.mode in RIVALS}
        if not (card and rivals and all(_has_all_solvers(rows, cell) for cell in rivals)):
            continue
        line: dict[str, Any] = {"NFE": nfe}
        for measure, title in titles.items():
            rival = min(rivals, key=lambda c: rivals[c]["values"][measure])  # noqa: B023
            change = difference(card, rivals[rival], measure)
            compared[measure].append(change)
            line |= {f"card's {title}": value_of(card, measure),
                     f"best rival in {title}": sampler(rival),
                     f"its {title}": value_of(rivals[rival], measure),
                     f"card - rival, {title}": change[:2]}  # fmt: skip
        lines.append(line)
    if lines:
        nfes, count = [line["NFE"] for line in lines], 2 * len(lines)
        words = " ".join(_said(titles[name], nfes, compared[name]) for name in titles)
        for end in part_of(rows, method=CONVERGED).values():
            value, error = value_of(end, "quality")
            words += f" The converged solution's {titles['quality']}: {value:.3g} ± {error:.2g}."
        yield table_of(
            f"{next(iter(rows)).data}. The {mode} against the best rival that is no card, "
            f"on the same seeds. {words} Beyond noise: more than {limit(count):.2f} paired "
            f"standard errors, the level of 95 % for all {count} comparisons of the table "
            "(Bonferroni).", lines,
        )  # fmt: skip


def _said(title: str, nfes: Sequence[int], compared: Sequence[Difference]) -> str:
    """Say at which evaluations the card is lower, higher or not different beyond noise."""
    parts = [[nfes[i] for i in beyond(compared, sign, 2 * len(nfes))] for sign in (-1, 1)]
    rest = [nfe for nfe in nfes if nfe not in (*parts[0], *parts[1])]
    known = zip((*SAYS, "undecided"), (*parts, rest), strict=True)
    texts = [f"{says} at NFE {', '.join(map(str, some))}" for says, some in known if some]
    return f"Its {title}: {', '.join(texts)}."


NOTES = [
    "NFE n: at most n evaluations of the network per sample; every solver takes as many steps as "
    "fit (column `used` of the csv). Published schedules: EDM's for Heun; EDM's nodes down to "
    "sigma_min for DPM-Solver-2 and iPNDM; uniform VP time for DEIS; uniform log-SNR for "
    "DPM-Solver++ and UniPC.",
    f"plain: the published schedule. {PAPER}: w_stiff and w_con of its Table 2 at 8 steps, the "
    "fewest it has. auto: coefficients without data, which at these budgets only Heun and "
    "DPM-Solver-2 have. levels, card, end to end: what erk.calibrate chooses for this solver: "
    f"levels without a correction, card with {' and '.join(CORRECTIONS['card'])} allowed, end to "
    "end with that fit too; an analytic first step and other schedules compete. "
    f"{BEST}: no solver given, as with erk calibrate MODEL --nfe n.",
    "Calibrations fit on 32 seeds and choose on 32 others; the values here are of further seeds, "
    f"from {FIRST}. '{MORE}' was added when the others had been seen. Standard errors leave out "
    "ten blocks of seeds in turn; differences are paired over the same seeds. The best rival is "
    "the least of many, which flatters it.",
    f"converged: DEIS of order 4 with {EVALUATIONS} evaluations. It was added when FD had been "
    "seen. A sampler whose FD is lower than its owes that to solver error.",
    "spectra: ten Gaussians of rank 12 in 48 dimensions with variances j^-2 and random means and "
    "subspaces, with their exact denoiser; fixed before anything was measured.",
]  # fmt: skip


def figure(rows: Computed) -> bytes:
    """Draw distance and quality over evaluations: above plain solvers, below the best of a mode."""
    plain, thick = part_of(rows, mode="plain"), {"linewidth": 2.2}
    plain = {cell: row for cell, row in plain.items() if cell.method is not CONVERGED}
    solvers = {method.name: (part_of(plain, method=method), look(i))
               for i, method in enumerate(METHODS[:-1])}  # fmt: skip
    levels = {  # where they are measured for every solver
        cell: row for cell, row in part_of(rows, mode="levels").items()
        if all(one._replace(mode="levels") in rows for one in part_of(plain, nfe=cell.nfe))
    }  # fmt: skip
    modes = {
        "best plain solver": (plain, look(7) | {"linestyle": ":"}),
        "best with auto": (part_of(rows, mode="auto"), look(2) | {"linestyle": "--"}),
        "best with optimised levels": (levels, look(1)),
        BEST: (part_of(rows, mode=BEST), look(0) | thick),
    }
    with canvas(6.6) as image:
        for part, curves in zip(
            image.subfigures(2, 1, squeeze=False)[:, 0], (solvers, modes), strict=True
        ):
            _draw(part, curves, quality(next(iter(rows))))
        image.suptitle(next(iter(rows)).data)
        return png(image)


def _draw(part: SubFigure, curves: Mapping[str, tuple[Computed, Any]], title: str) -> None:
    """Draw a panel of each measure and one legend: in each curve the least of its cells."""
    axes = part.subplots(1, 2)
    for axis, measure, words in zip(
        axes, ("error", "quality"), ("distance to converged", title), strict=True
    ):
        for label, (rows, style) in curves.items():
            least: dict[int, float] = {}
            for cell, row in rows.items():
                least[cell.nfe] = min(row["values"][measure], least.get(cell.nfe, math.inf))
            if least:
                axis.plot(*zip(*sorted(least.items()), strict=True), label=label,
                          markersize=4, **style)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)", ylabel=words)
        axis.set_xticks(ALL, [str(nfe) for nfe in ALL])
        axis.minorticks_off()
    part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

"""The cells of the comparison: their cost, their computation, and where they are kept."""

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.analysis import toy_results
from erk.calibration.solver_error import EVALUATIONS
from erk.generation.seeds import format_seeds
from erk.io.cache import cached, cached_path, find
from erk.method.guidance import unguided
from erk.method.point import norm
from erk.runtime.provenance import provenance
from metrics.evaluation import GROUPS
from metrics.jackknife import group_of, standard_error
from scripts.studies.comparison_modes import CHOOSE
from scripts.studies.comparison_plan import (
    BATCH,
    CALIBRATED,
    CALIBRATED_TOY,
    FIRST,
    TUNED,
    Cell,
    ends_from,
    networks,
    problem_of,
)
from scripts.studies.data import fd, load
from scripts.studies.rows import VERSION


def cost(cells: Iterable[Cell], results: Path) -> str:
    """Describe what is to be computed and about the evaluations it takes."""
    cells = list(cells)
    todo = pending(cells, results)
    spent = sum(cell.nfe * cell.num * (2 if "-" in cell.data else 1) for cell in todo)
    paths: dict[Any, int] = {}  # reference solutions, which cells share
    for cell in todo:
        kind = cell.data, cell.method.schedule == "edm"
        paths[*kind, "reported"] = max(cell.num, paths.get((*kind, "reported"), 0))
        if cell.mode == "fixed":
            spent += cell.nfe * 18 * TUNED
            paths[*kind, "fixed"] = TUNED
        if cell.mode == "calibrated":
            count = CALIBRATED_TOY if cell.data == "toy" else CALIBRATED
            spent += cell.nfe * count
            paths[cell.data, "calibrated"] = count
    spent += EVALUATIONS * sum(n * (2 if "-" in kind[0] else 1) for kind, n in paths.items())
    return f"{len(todo)} of {len(cells)} cells are to be computed: about {spent:,.0f} evaluations"


def pending(cells: Iterable[Cell], results: Path) -> list[Cell]:
    """Return the cells that are not computed yet."""
    return [cell for cell in cells if not path_of(cell, results).exists()]


def path_of(cell: Cell, results: Path) -> Path:
    """Return the file of a cell."""
    return cached_path(cell.key, VERSION, results / "rows")


def compute(cells: Iterable[Cell], results: Path) -> None:
    """Compute the cells that are not there yet."""
    torch.set_num_threads(1)
    todo = pending(cells, results)
    for number, cell in enumerate(todo, 1):
        start = time.process_time()
        row = cached(cell.key, VERSION, partial(_compute, cell, results), results / "rows")
        spent = time.process_time() - start
        click.echo(
            f"[{number}/{len(todo)}] {cell.data}, {cell.method.name}, {cell.budget}, {cell.mode}: "
            f"{sum(row['errors']) / cell.num:.4g}, {spent:.0f} CPU s", err=True,
        )  # fmt: skip


def read(cell: Cell, results: Path) -> dict[str, Any] | None:
    """Read the numbers of a cell; None: it is not computed yet."""
    try:
        row: dict[str, Any] = find(cell.key, VERSION, results / "rows")
    except FileNotFoundError:
        return None
    return row


def _compute(cell: Cell, results: Path) -> dict[str, Any]:
    """Compute a cell; where its mode does nothing, its numbers are the plain solver's."""
    problem = problem_of(cell)
    guidance, weights = CHOOSE[cell.mode](cell, problem, partial(read, results=results))
    plain = read(cell._replace(mode="plain"), results) if guidance is None else None
    if plain is not None:
        return plain | weights | {"mode": cell.mode, "acts": False}
    parts = []
    for start in range(0, cell.num, BATCH):
        seeds = cell.seeds[start : start + BATCH]
        parts.append(problem.run(*problem.draw(seeds), guidance or unguided))
    x, exact = torch.cat(parts), ends_from(cell, FIRST, cell.num)
    errors = [float(f"{value:.6g}") for value in norm(x - exact).flatten().tolist()]
    return {
        "data": cell.data, "method": cell.method.name, "mode": cell.mode,
        "acts": guidance is not None, **weights,
        **_quality(cell.data, x, exact), "errors": errors,
        "settings": cell.settings.identity(), "seeds": format_seeds(cell.seeds),
        "networks": [one.sha256 for one in networks(cell.data) if one is not None],
        **provenance(),
    }  # fmt: skip


@torch.inference_mode()
def _quality(data: str, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """Measure FD, or on the toy sliced W1 to the converged samples, with jackknife replicates."""
    if data == "toy":
        groups = group_of(len(x), GROUPS)
        without = [toy_results.sliced_w1(x[groups != g], exact[groups != g]) for g in range(GROUPS)]
        return {"quality": toy_results.sliced_w1(x, exact), "replicates": without,
                "quality_se": standard_error(without)}  # fmt: skip
    result = fd(load(data), x, GROUPS)
    return {"quality": result.values["fd"], "replicates": result.replicates["fd"],
            "quality_se": result.errors["fd"]}  # fmt: skip

"""The cells of the comparison with the rivals: how each is made and kept."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.analysis import toy_results
from erk.calibration.problem import gaussian
from erk.calibration.solver_error import EVALUATIONS
from erk.generation.job import plain
from erk.generation.seeds import format_seeds
from erk.io.download import sha256_of
from erk.method.guidance import unguided
from erk.method.point import norm
from erk.method.sampler import solve
from erk.runtime.provenance import provenance
from metrics.evaluation import GROUPS
from metrics.jackknife import group_of, standard_error
from metrics.table import to_json, write
from scripts.paper.config import ROOT
from scripts.studies.rivals_modes import GUIDES
from scripts.studies.rivals_plan import (
    BATCH,
    CALIBRATED,
    CALIBRATED_TOY,
    CALIBRATION,
    CHOSEN_ON,
    FIRST,
    TUNED,
    Cell,
    ends_from,
    networks,
    problem_of,
)
from scripts.studies.study_data import fd, load


def cost(cells: Iterable[Cell], results: Path) -> str:
    """What is to be made and about how many evaluations it takes."""
    cells = list(cells)
    todo = [cell for cell in cells if not place_of(cell, results).exists()]
    spent = sum(cell.nfe * cell.num * (2 if "-" in cell.data else 1) for cell in todo)
    paths = {}  # reference solutions, which cells share
    for cell in todo:
        kind = cell.data, cell.method.schedule == "edm"
        paths[*kind, "reported"] = max(cell.num, paths.get((*kind, "reported"), 0))
        if cell.mode == "fixed":
            spent += cell.nfe * 18 * TUNED
            paths[*kind, "fixed"] = TUNED
        if cell.mode == "calibrated":
            own = CALIBRATED_TOY if cell.data == "toy" else CALIBRATED
            spent += cell.nfe * own
            paths[cell.data, "calibrated"] = own
    spent += EVALUATIONS * sum(n * (2 if "-" in kind[0] else 1) for kind, n in paths.items())
    return f"{len(todo)} of {len(cells)} cells are to be made: about {spent:,.0f} evaluations"


def make(cells: Iterable[Cell], results: Path) -> None:
    """Make the cells that are not there yet."""
    torch.set_num_threads(1)
    todo = [cell for cell in cells if not place_of(cell, results).exists()]
    for number, cell in enumerate(todo, 1):
        began = time.process_time()
        found = _made(cell, results)
        write(place_of(cell, results), to_json(found))
        spent = time.process_time() - began
        click.echo(
            f"[{number}/{len(todo)}] {cell.data}, {cell.method.name}, {cell.budget}, {cell.mode}: "
            f"{sum(found['errors']) / cell.num:.4g}, {spent:.0f} CPU s", err=True,
        )  # fmt: skip


def read(cell: Cell, results: Path) -> dict[str, Any] | None:
    """What was found; None: it is not made yet."""
    place = place_of(cell, results)
    found: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.exists() else None
    return found


def place_of(cell: Cell, results: Path) -> Path:
    """The file of a cell, named by all that its numbers depend on."""
    told = [cell.data, cell.mode, cell.num, plain(vars(cell.settings)), _behaviour(cell),
            CHOSEN_ON.get(cell.mode), _digests(cell.data), FIRST, EVALUATIONS, BATCH]  # fmt: skip
    if cell.mode == "calibrated":
        told += [sha256_of(ROOT / "erk" / f"{name}.py") for name in CALIBRATION]
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
    return results / "rows" / f"rivals-{key}.json"


@functools.cache
def _behaviour(cell: Cell) -> list[str]:
    """What the solver's code does to Gaussian data, so that a cell outlives changes of words."""
    plan = dataclasses.replace(cell.settings, erk="auto" if cell.mode == "auto" else None)
    guide = None if plan.guidance == 1 else gaussian
    noise = torch.linspace(-2, 2, 4, dtype=torch.float64)[None]
    end = solve(plan.drift(gaussian, None, guide), noise, plan)
    return [f"{value:.5g}" for value in end.flatten().tolist()]


@functools.cache
def _digests(data: str) -> list[str]:
    model, guide = networks(data)
    return [one.sha256 for one in (model, guide) if one is not None]


def _made(cell: Cell, results: Path) -> dict[str, Any]:
    """The cell's numbers; those of the plain solver where its mode does nothing."""
    problem = problem_of(cell)
    guide, told = GUIDES[cell.mode](cell, problem, partial(read, results=results))
    same = read(cell._replace(mode="plain"), results) if guide is None else None
    if same is not None:
        return same | told | {"mode": cell.mode, "acts": False}
    parts = []
    with torch.inference_mode():
        for start in range(0, cell.num, BATCH):
            own = cell.seeds[start : start + BATCH]
            parts.append(problem.run(*problem.draw(own), guide or unguided))
    x, exact = torch.cat(parts), ends_from(cell, FIRST, cell.num)
    errors = [float(f"{value:.6g}") for value in norm(x - exact).flatten().tolist()]
    return {
        "data": cell.data, "method": cell.method.name, "mode": cell.mode,
        "acts": guide is not None, **told,
        **_quality(cell.data, x, exact), "errors": errors,
        "settings": plain(vars(cell.settings)), "seeds": format_seeds(cell.seeds),
        "networks": _digests(cell.data), **provenance(),
    }  # fmt: skip


def _quality(data: str, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """FD of pictures, sliced W1 to the converged samples on the toy; with jackknife replicates."""
    if data == "toy":
        groups = group_of(len(x), GROUPS)
        without = [toy_results.sliced_w1(x[groups != g], exact[groups != g]) for g in range(GROUPS)]
        return {"quality": toy_results.sliced_w1(x, exact), "replicates": without,
                "quality_se": standard_error(without)}  # fmt: skip
    result = fd(load(data), x, GROUPS)
    return {"quality": result.values["fd"], "replicates": result.replicates["fd"],
            "quality_se": result.errors["fd"]}  # fmt: skip

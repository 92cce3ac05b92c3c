"""The modes of the comparison: the guidance of each, and the choice of its weights."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from erk.calibration.fit import USUAL, ReferenceBatch, fit
from erk.calibration.parts import Parts
from erk.calibration.problem import Problem
from erk.calibration.search import search
from erk.calibration.solver_error import reference_path
from erk.method.corrections import Correction, auto
from erk.method.guidance import ErkGuid
from erk.method.point import Guidance
from scripts.studies.comparison_plan import (
    BUDGETS,
    CALIBRATED,
    CALIBRATED_FROM,
    CALIBRATED_TOY,
    FEW,
    NUM,
    TUNED,
    TUNED_FROM,
    WEIGHTS,
    Cell,
    cells_of,
    ends_from,
    fits,
    networks,
    problem_of,
)

Read = Callable[[Cell], dict[str, Any] | None]
"""(cell) -> its numbers, None if it is not computed yet."""
Choice = tuple[Guidance | None, dict[str, Any]]
"""The guidance of one run (None: nothing acts), and its weights for the record."""


def _plain(_: Cell, __: Problem, ___: Read) -> Choice:
    return None, {}


def _auto(_: Cell, problem: Problem, __: Read) -> Choice:
    sigmas = problem.sigmas
    return _of(auto(problem.settings.solver_for(sigmas, problem.model), sigmas), sigmas)


def _of(correction: Correction, sigmas: Tensor) -> Choice:
    weights = {"directions": list(correction.directions), "weights": list(correction.weights)}
    correction.check_levels(sigmas)
    return (correction if correction.acts else None), weights


def _fixed(cell: Cell, problem: Problem, read: Read) -> Choice:
    """Tune w_stiff and w_con; above FEW evaluations take those that were chosen at FEW."""
    known = None
    fewer = fits(cell.method, FEW)
    if cell.budget > FEW and fewer is not None:
        num = NUM * (4 if cell.data == "toy" else 1)
        known = read(cell._replace(budget=FEW, steps=fewer[0], nfe=fewer[1], num=num))
    known = known or _tuned(cell, problem)
    weights = {name: known[name] for name in ("w_stiff", "w_con")}
    return (ErkGuid(**weights) if weights["w_stiff"] else None), weights


def _tuned(cell: Cell, problem: Problem) -> dict[str, Any]:
    seeds = range(TUNED_FROM, TUNED_FROM + TUNED)
    ends = ends_from(cell, TUNED_FROM, TUNED)
    try:
        best = search(problem, seeds, ends, Parts(), WEIGHTS).choice
    except ValueError:  # no step has a pair
        return {"w_stiff": 0.0, "w_con": None}
    return {"w_stiff": best.w_stiff, "w_con": best.w_con if best.w_stiff else None}


def _calibrated(cell: Cell, problem: Problem, _: Read) -> Choice:
    """Fit coefficients per step to reference paths."""
    sigmas = problem.sigmas
    levels, batch = _paths(cell.data, BUDGETS if cell.budget in BUDGETS else (cell.budget,))
    rows = [levels.index(sigma) for sigma in sigmas.tolist()]
    batch = batch._replace(path=[batch.path[row] for row in rows])
    return _of(fit(problem, [batch], USUAL).correction, sigmas)


@functools.cache
def _paths(data: str, budgets: tuple[int, ...]) -> tuple[list[float], ReferenceBatch]:
    """Solve the reference path at the noise levels of all solvers and budgets."""
    cells = [cell for cell in cells_of((data,), budgets, (), None) if cell.mode == "calibrated"]
    every = {s for cell in cells for s in cell.settings.sigmas(networks(data)[0]).tolist()}
    levels = sorted(every, reverse=True)
    problem = problem_of(cells[0])
    count = CALIBRATED_TOY if data == "toy" else CALIBRATED
    noise, labels = problem.draw(range(CALIBRATED_FROM, CALIBRATED_FROM + count))
    noise = noise.to(problem.settings.dtype)
    drift, sigmas = problem.exact_drift(labels), torch.tensor(levels, dtype=noise.dtype)
    path = reference_path(drift, noise, sigmas).unbind()
    return levels, ReferenceBatch(noise, labels, path)


CHOOSE: dict[str, Callable[[Cell, Problem, Read], Choice]] = {
    "plain": _plain, "auto": _auto, "fixed": _fixed, "calibrated": _calibrated,
}  # fmt: skip

"""The modes of the comparison with the rivals: what each adds to a solver, and how it is chosen."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from erk.calibration import fit as calibration
from erk.calibration import search as tuning
from erk.calibration.parts import Parts
from erk.calibration.problem import Problem
from erk.calibration.solver_error import reference_path
from erk.method.corrections import Correction, auto
from erk.method.guidance import ErkGuid
from erk.method.point import Guidance
from scripts.studies.rivals_plan import (
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
"""(cell) -> what was found, None if it is not made yet."""
Made = tuple[Guidance | None, dict[str, Any]]
"""The guidance of a run (None: nothing acts), and its description for the cell."""


def _plain(_: Cell, __: Problem, ___: Read) -> Made:
    return None, {}


def _auto(_: Cell, problem: Problem, __: Read) -> Made:
    plan = problem.settings
    sigmas = plan.sigmas(problem.model)
    return _of(auto(plan.solver_for(sigmas, problem.model), sigmas), sigmas)


def _of(correction: Correction, sigmas: Tensor) -> Made:
    told = {"directions": list(correction.directions), "weights": list(correction.weights)}
    correction.check_levels(sigmas)
    return (correction if correction.acts else None), told


def _fixed(cell: Cell, problem: Problem, read: Read) -> Made:
    """w_stiff and w_con by erk.study.tuning, on seeds of their own; above FEW evaluations those
    that were chosen at FEW."""
    weights = None
    fewer = fits(cell.method, FEW)
    if cell.budget > FEW and fewer is not None:
        num = NUM * (4 if cell.data == "toy" else 1)
        known = cell._replace(budget=FEW, steps=fewer[0], nfe=fewer[1], num=num)
        weights = read(known)
    weights = weights or _tuned(cell, problem)
    told = {name: weights[name] for name in ("w_stiff", "w_con")}
    return (ErkGuid(**told) if told["w_stiff"] else None), told


def _tuned(cell: Cell, problem: Problem) -> dict[str, Any]:
    seeds = range(TUNED_FROM, TUNED_FROM + TUNED)
    ends = ends_from(cell, TUNED_FROM, TUNED)
    try:
        best = tuning.search(problem, seeds, ends, Parts(), WEIGHTS).choice
    except ValueError:  # no step has a pair
        return {"w_stiff": 0.0, "w_con": None}
    return {"w_stiff": best.w_stiff, "w_con": best.w_con if best.w_stiff else None}


def _calibrated(cell: Cell, problem: Problem, _: Read) -> Made:
    """Coefficients per step by erk.study.calibration, on seeds of their own."""
    plan, model = problem.settings, problem.model
    levels, whole = _paths(cell.data, BUDGETS if cell.budget in BUDGETS else (cell.budget,))
    places = [levels.index(sigma) for sigma in plan.sigmas(model).tolist()]
    batch = whole._replace(path=[whole.path[place] for place in places])
    found = calibration.fit(problem, [batch], calibration.USUAL)
    return _of(found.correction, plan.sigmas(model))


@functools.cache
def _paths(data: str, budgets: tuple[int, ...]) -> tuple[list[float], calibration.ReferenceBatch]:
    """The converged solution at the noise levels of all solvers and budgets; these levels."""
    cells = [cell for cell in cells_of((data,), budgets, (), None) if cell.mode == "calibrated"]
    found = {s for cell in cells for s in cell.settings.sigmas(networks(data)[0]).tolist()}
    levels = sorted(found, reverse=True)
    problem = problem_of(cells[0])
    count = CALIBRATED_TOY if data == "toy" else CALIBRATED
    noise, labels = problem.draw(range(CALIBRATED_FROM, CALIBRATED_FROM + count))
    noise = noise.to(problem.settings.dtype)
    path = reference_path(
        problem.exact_drift(labels), noise, torch.tensor(levels, dtype=noise.dtype)
    )
    return levels, calibration.ReferenceBatch(noise, labels, path)


GUIDES: dict[str, Callable[[Cell, Problem, Read], Made]] = {
    "plain": _plain, "auto": _auto, "fixed": _fixed, "calibrated": _calibrated,
}  # fmt: skip

"""The cells of the comparison with the rivals: what each is, how it is made and kept."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

import erk
from erk.corrections import Correction, auto, corrected
from erk.fetch import sha256_of
from erk.guides import erk_guid, unguided
from erk.jobs.folder import format_seeds, plain
from erk.jobs.noise import noise_and_labels
from erk.models.presets import find_preset
from erk.point import Guide, norm
from erk.sampler import Settings, solve
from erk.study import calibration, toy_results, tuning
from erk.study.problem import ExactToy, Problem, count_nfe, drift_of, ends_of, gaussian, run
from erk.study.solver_error import EVALUATIONS, reference_path
from erk.world import provenance
from metrics.errors import group_of, standard_error
from metrics.evaluation import GROUPS, measure
from metrics.extraction import extract
from metrics.judge import load_judge
from metrics.table import to_json, write
from scripts.tables.config import ROOT


class Method(NamedTuple):
    """A solver with the noise levels that people give it."""

    name: str
    solver: str
    schedule: str
    options: tuple[tuple[str, Any], ...] = ()
    plain_only: bool = False  # shows what another schedule does


METHODS = (
    Method("Heun, EDM", "heun", "edm"),
    Method("DPM-Solver-2, EDM nodes", "dpm2", "polynomial"),
    Method("iPNDM, EDM nodes", "ipndm", "polynomial"),
    Method("DEIS tAB3, uniform time", "deis", "time_uniform"),
    Method("DPM++(2M), log-SNR", "dpmpp", "logsnr", (("order", 2),)),
    Method("DPM++(2M), EDM nodes", "dpmpp", "polynomial", (("order", 2),)),
    Method("DPM++(3M), log-SNR", "dpmpp", "logsnr", (("order", 3),)),
    Method("DPM++(3M), EDM nodes", "dpmpp", "polynomial", (("order", 3),), True),
    Method("UniPC-3, log-SNR", "unipc", "logsnr", (("order", 3),)),
    Method("UniPC-3, EDM nodes", "unipc", "polynomial", (("order", 3),), True),
)
MODES = ("plain", "auto", "calibrated", "fixed")
FEW, NUM, NUM_LARGE = 16, 512, 128  # evaluations up to which cells have NUM samples
MOST_CHOSEN = 32  # evaluations up to which weights and coefficients are chosen
FIRST = 320000  # seed of what is reported; weights and coefficients are chosen on others
TUNED, TUNED_FROM = 64, 330000
CALIBRATED, CALIBRATED_TOY, CALIBRATED_FROM = 64, 512, 340000
WEIGHTS = tuning.WEIGHTS[::2]
BATCH = 128
CALIBRATION = ("corrections", "study/calibration")  # files that coefficients come from
CHOSEN_ON = {"fixed": (TUNED_FROM, TUNED, tuning.THRESHOLDS, tuning.SURE, *WEIGHTS),
             "calibrated": (CALIBRATED_FROM, CALIBRATED, CALIBRATED_TOY)}  # fmt: skip
"""What decides the weights of a mode, beside the problem."""


class Cell(NamedTuple):
    """One number of evaluations of one solver in one mode."""

    data: str
    method: Method
    budget: int
    mode: str
    steps: int  # as many as the budget has room for
    nfe: float
    num: int

    @property
    def settings(self) -> Settings:
        """Those of the plain solver."""
        how: dict[str, Any] = {"sigma_max": ExactToy.sigma_max, "dtype": torch.float64}
        if self.data != "toy":
            how = {"guidance": find_preset(self.data).guidance}
        return Settings(self.method.solver, self.method.schedule, self.steps,
                        solver_options=dict(self.method.options), **how)  # fmt: skip

    @property
    def seeds(self) -> range:
        """Those that are reported; the others' are in CHOSEN_ON."""
        return range(FIRST, FIRST + self.num)


def cells_of(
    data: Sequence[str], budgets: Sequence[int], solvers: Sequence[str], num: int | None
) -> list[Cell]:
    """All cells that are asked for, in the order in which they are made. Raises ValueError."""
    known = dict.fromkeys(method.solver for method in METHODS)
    unknown = next((name for name in solvers if name not in known), None)
    if unknown is not None:
        raise ValueError(f"--solver {unknown} is none of {', '.join(known)}.")
    found = []
    for name in data:
        for mode in MODES:
            for method in METHODS:
                if method.plain_only and mode != "plain":
                    continue
                for budget in budgets:
                    if budget > MOST_CHOSEN and mode in CHOSEN_ON:
                        continue
                    fits = _fits(method, budget)
                    if fits is not None and (not solvers or method.solver in solvers):
                        n = num or (NUM if budget <= FEW or name == "toy" else NUM_LARGE)
                        n = 4 * n if name == "toy" and num is None else n
                        found.append(Cell(name, method, budget, mode, *fits, n))
    return found


@functools.cache
def _nfe(solver: str, schedule: str, steps: int) -> float:
    return count_nfe(Settings(solver, schedule, steps))[0]


def _fits(method: Method, budget: int) -> tuple[int, float] | None:
    """(steps, NFE) of the most steps within the budget, of one or two evaluations each."""
    counts = ((n, _nfe(method.solver, method.schedule, n))
              for n in (budget, budget // 2 + 1, budget // 2) if n > 1)  # fmt: skip
    return next((pair for pair in counts if pair[1] <= budget), None)


def cost(cells: Iterable[Cell], results: Path) -> str:
    """What is to be made and about how many evaluations it takes."""
    cells = list(cells)
    todo = [cell for cell in cells if not place_of(cell, results).exists()]
    spent = sum(cell.nfe * cell.num * (2 if "-" in cell.data else 1) for cell in todo)
    for cell in todo:
        if cell.mode == "fixed":
            spent += cell.nfe * 18 * TUNED
        if cell.mode == "calibrated":
            spent += (cell.nfe + EVALUATIONS) * CALIBRATED
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
    model, guide = _networks(data)
    return [one.sha256 for one in (model, guide) if one is not None]


@functools.cache
def _networks(data: str) -> tuple[Any, Any]:
    if data == "toy":
        return ExactToy(), None
    preset = find_preset(data)
    guide = None if preset.gnet is None else erk.load_model(preset.gnet)
    return erk.load_model(preset.net), guide


def _problem(cell: Cell) -> Problem:
    model, guide = _networks(cell.data)
    return Problem(model, guide, cell.settings, partial(noise_and_labels, model=model), BATCH)


def _made(cell: Cell, results: Path) -> dict[str, Any]:
    """The cell's numbers; those of the plain solver where its mode does nothing."""
    problem = _problem(cell)
    guide, told = GUIDES[cell.mode](cell, problem, results)
    same = read(cell._replace(mode="plain"), results) if guide is None else None
    if same is not None:
        return same | told | {"mode": cell.mode, "acts": False}
    parts = []
    with torch.inference_mode():
        for start in range(0, cell.num, BATCH):
            own = cell.seeds[start : start + BATCH]
            parts.append(run(problem, *problem.start(own), guide() if guide else unguided))
    x, exact = torch.cat(parts), _converged(cell.data, cell.method.schedule == "edm", cell.num)
    errors = [float(f"{value:.6g}") for value in norm(x - exact).flatten().tolist()]
    return {
        "data": cell.data, "method": cell.method.name, "mode": cell.mode, "budget": cell.budget,
        "steps": cell.steps, "nfe": cell.nfe, "acts": guide is not None, **told,
        **_quality(cell.data, problem, x, exact), "errors": errors,
        "settings": plain(vars(cell.settings)), "seeds": format_seeds(cell.seeds),
        "networks": _digests(cell.data), **provenance(),
    }  # fmt: skip


@functools.cache
def _converged(data: str, to_zero: bool, num: int) -> Tensor:
    """Where the ODE ends from the reported seeds' noise, [num, ...]."""
    method = next(m for m in METHODS if (m.schedule == "edm") == to_zero)
    cell = Cell(data, method, 8, "plain", 8, 8, num)
    problem, seeds = _problem(cell), cell.seeds
    return torch.cat([ends_of(problem, seeds[i : i + BATCH]) for i in range(0, num, BATCH)])


def _quality(data: str, problem: Problem, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """FD of pictures, sliced W1 to the converged samples on the toy; with jackknife replicates."""
    if data == "toy":
        groups = group_of(len(x), GROUPS)
        without = [toy_results.sliced_w1(x[groups != g], exact[groups != g]) for g in range(GROUPS)]
        return {"quality": toy_results.sliced_w1(x, exact), "replicates": without,
                "quality_se": standard_error(without)}  # fmt: skip
    judge = _judge()
    found = extract(problem.model.decode(x), judge.how.extractors)
    result = measure(found, judge.protocol, judge.reference)
    return {"quality": result.values["fd"], "replicates": result.replicates.get("fd", []),
            "quality_se": result.errors.get("fd")}  # fmt: skip


@functools.cache
def _judge() -> Any:
    return load_judge("digits", metrics=("fd",))


Made = tuple[Callable[[], Guide] | None, dict[str, Any]]
"""What makes the guide of one run (None: nothing acts), and what a cell tells of it."""


def _plain(_: Cell, __: Problem, ___: Path) -> Made:
    return None, {}


def _auto(_: Cell, problem: Problem, __: Path) -> Made:
    plan = problem.settings
    sigmas = plan.sigmas(problem.model)
    return _of(auto(partial(plan._solver, sigmas, problem.model), sigmas, plan.afs))


def _of(correction: Correction) -> Made:
    told = {"directions": list(correction.directions), "weights": list(correction.weights)}
    acts = any(any(row) for row in correction.weights)
    return (partial(corrected, correction) if acts else None), told


def _fixed(cell: Cell, problem: Problem, results: Path) -> Made:
    """w_stiff and w_con by erk.study.tuning, on seeds of their own; above FEW evaluations those
    that were chosen at FEW."""
    weights = None
    fewer = _fits(cell.method, FEW)
    if cell.budget > FEW and fewer is not None:
        num = NUM * (4 if cell.data == "toy" else 1)
        known = cell._replace(budget=FEW, steps=fewer[0], nfe=fewer[1], num=num)
        weights = read(known, results)
    weights = weights or _tuned(cell, problem)
    told = {name: weights[name] for name in ("w_stiff", "w_con")}
    return ((lambda: partial(erk_guid, **told)) if told["w_stiff"] else None), told


def _tuned(cell: Cell, problem: Problem) -> dict[str, Any]:
    seeds = range(TUNED_FROM, TUNED_FROM + TUNED)
    ends = _tuning_ends(cell.data, cell.method.schedule == "edm", TUNED)
    try:
        best = tuning.tune(problem, seeds, ends, lambda _, make: make(), WEIGHTS).choice
    except ValueError:  # no step has a pair
        return {"w_stiff": 0.0, "w_con": None}
    return {"w_stiff": best.w_stiff, "w_con": best.w_con if best.w_stiff else None}


@functools.cache
def _tuning_ends(data: str, to_zero: bool, num: int) -> Tensor:
    method = next(m for m in METHODS if (m.schedule == "edm") == to_zero)
    problem = _problem(Cell(data, method, 8, "plain", 8, 8, num))
    return ends_of(problem, range(TUNED_FROM, TUNED_FROM + num))


def _calibrated(cell: Cell, problem: Problem, _: Path) -> Made:
    """Coefficients per step by erk.study.calibration, on seeds of their own."""
    plan, model = problem.settings, problem.model
    sigmas = plan.sigmas(model)
    count = CALIBRATED_TOY if cell.data == "toy" else CALIBRATED
    noise, labels = problem.start(range(CALIBRATED_FROM, CALIBRATED_FROM + count))
    with torch.inference_mode():
        path = reference_path(drift_of(problem, labels), noise.to(plan.dtype), sigmas)
    ways = calibration.directions_of(cell.method.solver)
    batch = calibration.Batch(noise, labels, path)
    return _of(calibration.fit(plan, model, [batch], ways, problem.guide).correction)


GUIDES: dict[str, Callable[[Cell, Problem, Path], Made]] = {
    "plain": _plain, "auto": _auto, "fixed": _fixed, "calibrated": _calibrated,
}  # fmt: skip

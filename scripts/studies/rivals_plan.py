"""The plan of the comparison with the rivals: solvers, modes, budgets, seeds."""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.analysis.toy import ExactToy
from erk.calibration import search as tuning
from erk.calibration.parts import Parts
from erk.calibration.problem import Problem, count_nfe
from erk.calibration.solver_error import EVALUATIONS
from erk.method.settings import Settings
from erk.models.noise import noise_and_labels
from erk.models.presets import find_preset
from scripts.studies.study_data import load


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
BUDGETS = (5, 6, 8, 10, 16, 32, 64)  # evaluations per sample, at most
FEW, NUM, NUM_LARGE = 16, 512, 128  # evaluations up to which cells have NUM samples
MOST_CHOSEN = 32  # evaluations up to which weights and coefficients are chosen
FIRST = 320000  # seed of what is reported; weights and coefficients are chosen on others
TUNED, TUNED_FROM = 64, 330000
CALIBRATED, CALIBRATED_TOY, CALIBRATED_FROM = 128, 512, 340000
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
                    room = fits(method, budget)
                    if room is not None and (not solvers or method.solver in solvers):
                        n = num or (NUM if budget <= FEW or name == "toy" else NUM_LARGE)
                        n = 4 * n if name == "toy" and num is None else n
                        found.append(Cell(name, method, budget, mode, *room, n))
    return found


@functools.cache
def _nfe(solver: str, schedule: str, steps: int) -> float:
    return count_nfe(Settings(solver, schedule, steps))[0]


def fits(method: Method, budget: int) -> tuple[int, float] | None:
    """(steps, NFE) of the most steps within the budget, of one or two evaluations each."""
    counts = ((n, _nfe(method.solver, method.schedule, n))
              for n in (budget, budget // 2 + 1, budget // 2) if n > 1)  # fmt: skip
    return next((pair for pair in counts if pair[1] <= budget), None)


@functools.cache
def networks(data: str) -> tuple[Any, Any]:
    """The network and its guide, or None."""
    if data == "toy":
        return ExactToy(), None
    known = load(data)
    return known.model, known.guide


def problem_of(cell: Cell) -> Problem:
    """The cell's plain solver with its networks."""
    model, guide = networks(cell.data)
    return Problem(model, guide, cell.settings, partial(noise_and_labels, model=model), BATCH)


def ends_from(cell: Cell, first: int, num: int) -> Tensor:
    """Where the ODE ends from the noise of `num` seeds, at the cell's last noise level: [num, ...].

    Solvers and budgets share them.
    """
    to_zero = cell.method.schedule == "edm"
    parts = [_ends(cell.data, to_zero, start, BATCH) for start in range(first, first + num, BATCH)]
    return torch.cat(parts)[:num]


@functools.cache
def _ends(data: str, to_zero: bool, first: int, num: int) -> Tensor:
    method = next(m for m in METHODS if (m.schedule == "edm") == to_zero)
    problem = problem_of(Cell(data, method, 8, "plain", 8, 8, num))
    seeds = range(first, first + num)
    return tuning.converged_ends(problem, seeds, EVALUATIONS, Parts(), "")

"""The plan of the comparison: solvers, modes, budgets, seeds."""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.analysis.toy import ExactToy
from erk.calibration.parts import Parts
from erk.calibration.problem import Problem, count_nfe
from erk.calibration.search import SURE, THRESHOLDS, converged_ends
from erk.calibration.search import WEIGHTS as ALL_WEIGHTS
from erk.calibration.solver_error import EVALUATIONS
from erk.method.settings import Settings
from erk.models.noise import noise_and_labels
from erk.models.presets import find_preset
from metrics import evaluation
from scripts.studies.data import load


class Method(NamedTuple):
    """A solver with a schedule in common use."""

    name: str
    solver: str
    schedule: str
    options: tuple[tuple[str, Any], ...] = ()
    plain_only: bool = False  # without ERK-Guid, to show another schedule


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
FEW, NUM, NUM_LARGE = 16, 512, 128  # cells up to FEW evaluations have NUM samples
MOST_CHOSEN = 32  # evaluations up to which weights and coefficients are chosen
FIRST = 320_000  # seed of the reported samples; weights and coefficients are chosen on others
TUNED, TUNED_FROM = 64, 330_000
CALIBRATED, CALIBRATED_TOY, CALIBRATED_FROM = 128, 512, 340_000
WEIGHTS = ALL_WEIGHTS[::2]
BATCH = 128
CHOSEN_ON = {"fixed": (TUNED_FROM, TUNED, THRESHOLDS, SURE, *WEIGHTS),
             "calibrated": (CALIBRATED_FROM, CALIBRATED, CALIBRATED_TOY)}  # fmt: skip
"""What the weights of a mode depend on, beside the problem."""


class Cell(NamedTuple):
    """One budget of evaluations of one solver in one mode."""

    data: str
    method: Method
    budget: int
    mode: str
    steps: int  # the most that the budget has room for
    nfe: float
    num: int

    @property
    def settings(self) -> Settings:
        """The settings of the plain solver."""
        settings: dict[str, Any] = {"sigma_max": ExactToy.sigma_max, "dtype": torch.float64}
        if self.data != "toy":
            settings = {"guidance": find_preset(self.data).guidance}
        return Settings(self.method.solver, self.method.schedule, self.steps,
                        solver_options=dict(self.method.options), **settings)  # fmt: skip

    @property
    def seeds(self) -> range:
        """The seeds of the reported samples."""
        return range(FIRST, FIRST + self.num)

    @property
    def key(self) -> list[Any]:
        """All that the cell's numbers depend on, as JSON."""
        sha256 = [one.sha256 for one in networks(self.data) if one is not None]
        chosen_on = CHOSEN_ON.get(self.mode)
        return ["comparison", self.data, self.mode, self.num, self.settings.identity(), chosen_on,
                sha256, FIRST, EVALUATIONS, BATCH, evaluation.VERSION]  # fmt: skip


def cells_of(
    data: Sequence[str], budgets: Sequence[int], solvers: Sequence[str], num: int | None
) -> list[Cell]:
    """List all cells in the order of their computation. Raises ValueError."""
    known = dict.fromkeys(method.solver for method in METHODS)
    unknown = next((name for name in solvers if name not in known), None)
    if unknown is not None:
        raise ValueError(f"--solver {unknown} is none of {', '.join(known)}.")
    return [
        cell
        for name in data
        for mode in MODES
        for method in METHODS
        for budget in budgets
        if not solvers or method.solver in solvers
        if (cell := _cell(name, mode, method, budget, num)) is not None
    ]


def _cell(data: str, mode: str, method: Method, budget: int, num: int | None) -> Cell | None:
    """Return a cell; None where the mode or the budget leaves it out."""
    if (method.plain_only and mode != "plain") or (budget > MOST_CHOSEN and mode in CHOSEN_ON):
        return None
    room = fits(method, budget)
    if room is None:
        return None
    n = num or (NUM if budget <= FEW or data == "toy" else NUM_LARGE)
    n = 4 * n if data == "toy" and num is None else n
    return Cell(data, method, budget, mode, *room, n)


@functools.cache
def _nfe(solver: str, schedule: str, steps: int) -> float:
    return count_nfe(Settings(solver, schedule, steps))[0]


def fits(method: Method, budget: int) -> tuple[int, float] | None:
    """Return (steps, NFE) of the most steps within the budget; None if there is none."""
    counts = ((n, _nfe(method.solver, method.schedule, n))
              for n in (budget, budget // 2 + 1, budget // 2) if n > 1)  # fmt: skip
    return next((pair for pair in counts if pair[1] <= budget), None)


@functools.cache
def networks(data: str) -> tuple[Any, Any]:
    """Return the network and its guide, or None."""
    if data == "toy":
        return ExactToy(), None
    loaded = load(data)
    return loaded.model, loaded.guide_model


def problem_of(cell: Cell) -> Problem:
    """Return the cell's plain solver with its networks."""
    model, guide = networks(cell.data)
    return Problem(model, guide, cell.settings, partial(noise_and_labels, model=model), BATCH)


def ends_from(cell: Cell, first: int, num: int) -> Tensor:
    """Compute the converged solutions of `num` seeds at the cell's last noise level, [num, ...].

    Solvers and budgets share them.
    """
    to_zero = cell.method.schedule == "edm"
    parts = [_ends(cell.data, to_zero, start) for start in range(first, first + num, BATCH)]
    return torch.cat(parts)[:num]


@functools.cache
def _ends(data: str, to_zero: bool, first: int) -> Tensor:
    method = next(m for m in METHODS if (m.schedule == "edm") == to_zero)
    problem = problem_of(Cell(data, method, 8, "plain", 8, 8, BATCH))
    return converged_ends(problem, range(first, first + BATCH), EVALUATIONS, Parts(), "ends")

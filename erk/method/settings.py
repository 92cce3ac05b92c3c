"""Settings: everything that decides a sample beside the networks, the noise and the labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erk.method.corrections import Card, Correction, auto, check_card, corrected, networks
from erk.method.drift import Denoiser, GuidedDrift, ProjectedDrift
from erk.method.guidance import SCALES, erk_guid, unguided
from erk.method.point import Guide, Point, Solver, Step
from erk.method.schedule import SCHEDULES, check_schedule, make_schedule
from erk.method.solvers import default_options, make_solver

Churn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[Tensor], Tensor]
Twin = Callable[[Step, Step | None], tuple[Point | None, Tensor | None]]
"""(step, the previous step or None) -> (twin, h): a pair for ERK-Guid chosen by the caller."""


SAME = ("solver", "steps", "sigma_min", "sigma_max", "guidance", "afs", "denoise_to_zero")
RECIPE = (*SAME, "solver_options", "schedule", "rho", "guidance_interval")
"""Settings that a correction depends on."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a sample beside the networks, the noise and the labels.

    Checked on construction (ValueError, one sentence), so that bad input fails before any
    weights are read. The names are those of `sample`.
    """

    solver: str | Solver = "heun"
    schedule: str | Sequence[float] = "edm"
    steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    w_stiff: float = 0.0
    w_con: float = 0.5
    erk_scale: str = "quadratic"
    erk_proj: bool = False
    erk: str | Card | Correction | None = None  # "auto", a card or a correction
    twin: Twin | None = None
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    afs: bool = False
    denoise_to_zero: bool = False
    adaptive_tau: float | None = None
    pc_snr: float = 0.0
    pc_stochastic: bool = True
    solver_options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_schedule(self.schedule, self.steps, self.sigma_min, self.sigma_max, self.rho)
        self.solver_for(None, None)
        for name in ("guidance", "w_stiff", "w_con", "S_churn", "S_min", "S_noise", "pc_snr"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, not {getattr(self, name)}.")
        for name in ("w_stiff", "w_con", "S_churn", "S_noise", "pc_snr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name):g}.")
        if self.erk_scale not in SCALES:
            raise ValueError(f"erk_scale must be {' or '.join(SCALES)}, not '{self.erk_scale}'.")
        if self.guidance_interval is not None and not (
            0 <= self.guidance_interval[0] < self.guidance_interval[1]
        ):
            raise ValueError(
                "guidance_interval must be (lo, hi) in sigma with 0 <= lo < hi, "
                f"not {self.guidance_interval}."
            )
        self._check_combination()

    def _check_combination(self) -> None:
        if self.erk is not None:
            self._check_erk()
        if self.w_stiff > 0 and self.S_churn > 0:
            raise ValueError("ERK-Guid (w_stiff > 0) needs a deterministic step: set S_churn to 0.")
        if self.erk_proj and (self.guidance == 1 or self.w_stiff == 0):
            raise ValueError("ERK-Proj works on model guidance: give guidance and w_stiff > 0.")
        if self.w_stiff > 0 and (self.pc_snr > 0 or self.adaptive_tau is not None):
            raise ValueError(
                "ERK-Guid, adaptive steps and the Langevin corrector are rivals: set w_stiff to 0."
            )
        if self.adaptive_tau is not None and not (
            self.adaptive_tau > 0 and self.solver == "heun" and self.S_churn == self.pc_snr == 0
        ):
            raise ValueError(
                "adaptive steps (adaptive_tau > 0) are defined for the plain heun solver."
            )
        if self.afs and self.adaptive_tau is not None:
            raise ValueError("adaptive steps begin with a real evaluation: leave out afs.")
        if self.denoise_to_zero and isinstance(self.schedule, str) and self.schedule == "edm":
            raise ValueError("the 'edm' schedule ends at 0 already: leave out denoise_to_zero.")

    def _check_erk(self) -> None:
        if isinstance(self.erk, str) and self.erk != "auto":
            raise ValueError(
                f"erk must be 'auto', a Card or a Correction, not '{self.erk}': open a card's file "
                "with erk.calibration.card.read_card."
            )
        if isinstance(self.erk, Card):
            check_card(self.erk, self.recipe())
        for name in ("w_stiff", "w_con", "erk_scale"):
            usual = self.__dataclass_fields__[name].default
            if getattr(self, name) != usual:
                raise ValueError(f"erk has coefficients of its own: leave {name} at {usual}.")
        if self.twin is not None:
            raise ValueError("erk is made for the solver's own pair: leave out twin.")
        if self.S_churn > 0 or self.pc_snr > 0 or self.adaptive_tau is not None:
            raise ValueError(
                "erk needs the plain, deterministic steps that its coefficients are made for: "
                "leave out S_churn, the Langevin corrector and adaptive_tau."
            )

    def sigmas(self, model: Any = None) -> Tensor:
        """The noise levels, [N + 1] in `dtype` on the CPU.

        As in EDM's sampler they stay within model.sigma_min and model.sigma_max and become levels
        that the model knows, model.round_sigma; a model without these takes any level.
        """
        made = make_schedule(self.schedule, self.steps, *self._ends(model), self.rho, model)
        if self.denoise_to_zero and made[-1] > 0:
            made = torch.cat([made, made.new_zeros(1)])
        # levels that rounding made equal are one level
        return torch.unique_consecutive(_round_sigma(model, made).to(self.dtype))

    def _ends(self, model: Any) -> tuple[float, float]:
        """(sigma_min, sigma_max) within what the model knows."""
        return (
            max(self.sigma_min, getattr(model, "sigma_min", 0.0)),
            min(self.sigma_max, getattr(model, "sigma_max", math.inf)),
        )

    def drift(
        self,
        model: Denoiser,
        labels: Tensor | None = None,
        guide_model: Denoiser | None = None,
        guide_labels: Tensor | None = None,
    ) -> GuidedDrift:
        """The drift with these settings' model guidance."""
        kind = ProjectedDrift if self.erk_proj else GuidedDrift
        drift = kind(
            model, labels, guide_model, self.guidance, self.guidance_interval, guide_labels
        )
        if isinstance(drift, ProjectedDrift):
            drift.w_stiff, drift.embedded = self.w_stiff, self.solver == "heun"
        return drift

    def guide(self, sigmas: Tensor | None = None, model: Any = None, guide: Any = None) -> Guide:
        """ERK-Guid with these weights, or no guide at w_stiff 0 and where ERK-Proj acts.

        With ``erk`` the correction of these noise levels, [N + 1]. ValueError for a card of other
        networks, or a correction of other levels.
        """
        if self.erk is not None:
            if sigmas is None:
                raise ValueError("erk acts at the noise levels of a run: give them.")
            return corrected(self.correction(sigmas, model, guide), sigmas)
        if self.w_stiff == 0 or self.erk_proj:
            return unguided
        return partial(erk_guid, w_stiff=self.w_stiff, w_con=self.w_con, scale=self.erk_scale)

    def correction(self, sigmas: Tensor, model: Any, guide: Any = None) -> Correction:
        """What ``erk``, which must not be None, adds to steps between these noise levels."""
        if isinstance(self.erk, Card):
            check_card(self.erk, networks(model, guide, self.guidance))
            return self.erk.correction
        if isinstance(self.erk, Correction):
            return self.erk
        return auto(partial(self.solver_for, sigmas, model), sigmas, self.afs)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that a correction depends on, as JSON holds them.

        Defaults of the solver and of the schedule are filled in. Raises ValueError for a solver
        that is a function: a card could not name it.
        """
        if not isinstance(self.solver, str):
            raise ValueError("a card knows solvers by name: give a solver of docs/solvers.md.")
        schedule, rho, interval = self.schedule, self.rho, self.guidance_interval
        named = isinstance(schedule, str)
        known = default_options(self.solver) | self.solver_options
        return {name: getattr(self, name) for name in SAME} | {
            "steps": self.steps if named else len(schedule) - 1,
            "solver_options": known,
            "schedule": schedule if named else [float(level) for level in schedule],
            "rho": (SCHEDULES[schedule][1] if rho is None else rho) if named else None,
            "guidance_interval": None if interval is None else [float(bound) for bound in interval],
        }

    def solver_for(self, sigmas: Tensor | None, model: Any) -> Solver:
        if not callable(self.solver):
            return make_solver(self.solver, self.solver_options, sigmas, self._ends(model))
        if self.solver_options:
            raise ValueError("solver_options are for named solvers; bind your own solver's.")
        return self.solver

    def churn_for(self, model: Any, intervals: int, randn_like: Noise) -> Churn | None:
        """EDM's noise injection (Karras et al. 2022, Algorithm 2), or None when it is off."""
        if self.S_churn == 0:
            return None

        def inject(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            if not self.S_min <= sigma <= self.S_max:
                return x, sigma
            gamma = min(self.S_churn / intervals, math.sqrt(2) - 1)
            raised = _round_sigma(model, sigma + gamma * sigma).to(sigma)
            return x + (raised**2 - sigma**2).sqrt() * self.S_noise * randn_like(x), raised

        return inject


def _round_sigma(model: Any, sigma: Tensor) -> Tensor:
    return model.round_sigma(sigma) if hasattr(model, "round_sigma") else sigma

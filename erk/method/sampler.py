"""The sampler: a schedule, a solver, a guide and one loop."""

import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from erk.calibration.card import Card, check_made_for, networks, opened, recipe
from erk.method.baselines import adaptive_heun, with_langevin
from erk.method.corrections import Correction, auto, corrected
from erk.method.drift import Denoiser, GuidedDrift, NonFiniteError, ProjectedDrift, analytic_first
from erk.method.guidance import SCALES, TELEMETRY, erk_guid, telemetry, unguided
from erk.method.point import Drift, Guide, Point, Solver, Step, norm
from erk.method.schedule import check_schedule, make_schedule
from erk.method.solvers import euler, make_solver

Churn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[Tensor], Tensor]
Twin = Callable[[Step, Step | None], tuple[Point | None, Tensor | None]]
"""(step, the step before or None) -> (twin, h): a pair of one's own for ERK-Guid."""


def steps(
    drift: Drift,
    x: Tensor,
    sigmas: Tensor,
    solver: Solver,
    guide: Guide = unguided,
    churn: Churn | None = None,
) -> Iterator[tuple[Tensor, Step]]:
    """The one sampling loop: yields the carried state and the solver's Step of every interval.

    x [B, ...] at sigmas[0]; sigmas [N + 1] on the CPU in x's dtype. An interval that ends at
    sigma = 0 is Euler's and never guided: there x becomes D.
    """
    memory = None
    for sigma, sigma_next in pairwise(sigmas):
        if churn is not None:
            x, sigma = churn(x, sigma)
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)
            x = step.x
        else:
            step = solver(drift, x, sigma, sigma_next, memory)
            x, memory = guide(step), step.memory
        yield x, step


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
    erk: str | PathLike[str] | Card | Correction | None = None  # "auto", a card or its file
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
        self._solver(None, None)
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
        object.__setattr__(self, "erk", opened(self.erk))
        if isinstance(self.erk, Card):
            check_made_for(self.erk, recipe(self))
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
            check_made_for(self.erk, networks(model, guide, self.guidance))
            return self.erk.correction
        if isinstance(self.erk, Correction):
            return self.erk
        return auto(partial(self._solver, sigmas, model), sigmas, self.afs)

    def loop(
        self, drift: GuidedDrift, x: Tensor, sigmas: Tensor, randn_like: Noise,
        guide: Guide | None = None,
    ) -> Iterator[tuple[Tensor, Step]]:  # fmt: skip
        """The sampling loop that these settings ask for; `guide` takes the place of theirs."""
        if self.adaptive_tau is not None:
            return adaptive_heun(drift, x, sigmas, self.adaptive_tau)
        solver = self._solver(sigmas, drift.model)
        if self.pc_snr > 0:
            solver = with_langevin(solver, self.pc_snr, randn_like if self.pc_stochastic else None)
        if self.twin is not None:
            solver = with_twin(solver, self.twin)
        if self.w_stiff > 0 and not self.erk_proj:
            solver = must_pair(solver)
        churn = self._churn(drift.model, len(sigmas) - 1, randn_like)
        start = analytic_first(drift) if self.afs else drift
        guide = guide or self.guide(sigmas, drift.model, drift.guide_model)
        return steps(start, x, sigmas, solver, guide, churn)

    def _solver(self, sigmas: Tensor | None, model: Any) -> Solver:
        if not callable(self.solver):
            return make_solver(self.solver, self.solver_options, sigmas, self._ends(model))
        if self.solver_options:
            raise ValueError("solver_options are for named solvers; bind your own solver's.")
        return self.solver

    def _churn(self, model: Any, intervals: int, randn_like: Noise) -> Churn | None:
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


def with_twin(solver: Solver, choose: Twin) -> Solver:
    """`solver` with a pair of one's own: choose(step, the step before or None) -> (twin, h)."""

    def chosen(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        inner, before = memory or (None, None)
        step = solver(drift, x, sigma, sigma_next, inner)
        twin, h = choose(step, before)
        return step._replace(twin=twin, h=h, memory=(step.memory, step))

    return chosen


def must_pair(solver: Solver) -> Solver:
    """`solver`, but ValueError if its second step has no pair: ERK-Guid would silently be off."""
    first = [True]

    def paired(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        step = solver(drift, x, sigma, sigma_next, memory)
        if step.twin is None and not first:
            raise ValueError(
                "this solver never offers ERK-Guid a pair (Step.twin and Step.h); "
                "give it one with twin=, or set w_stiff to 0."
            )
        first.clear()
        return step

    return paired


def _round_sigma(model: Any, sigma: Tensor) -> Tensor:
    return model.round_sigma(sigma) if hasattr(model, "round_sigma") else sigma


def integrate(
    drift: GuidedDrift, noise: Tensor, settings: Settings, randn_like: Noise = torch.randn_like
) -> Iterator[tuple[Tensor, Step]]:
    """`steps` from unit-variance noise [B, ...] by `settings`; raises NonFiniteError at the end.

    The check gathers one number per sample and step on the device and looks at them once, after
    the last step, so it never makes a GPU wait.
    """
    sigmas = settings.sigmas(drift.model)
    start = noise.to(settings.dtype) * sigmas[0]
    sums = []
    for x, step in settings.loop(drift, start, sigmas, randn_like):
        sums.append(x.flatten(1).sum(1, dtype=torch.promote_types(x.dtype, torch.float32)))
        yield x, step
    bad = (~torch.stack(sums).isfinite()).nonzero()
    if len(bad):
        index, sample = bad[0].tolist()
        raise NonFiniteError(sample, index, sigmas[index].item(), drift.in_half)


def solve(
    drift: GuidedDrift,
    noise: Tensor,
    settings: Settings,
    randn_like: Noise = torch.randn_like,
    watch: Callable[[Tensor, Step], None] | None = None,
) -> Tensor:
    """The last state of `integrate`, x0 [B, ...]; `watch` sees every state and Step."""
    x0 = noise
    for state, step in integrate(drift, noise, settings, randn_like):
        x0 = state
        if watch is not None:
            watch(state, step)
    return x0


class Trace:
    """Collects telemetry step by step; `result()` is {name: [steps, B]} (`guides.telemetry`)."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.rows: list[dict[str, Tensor]] = []

    def __call__(self, x: Tensor, step: Step) -> None:
        s = self.settings
        seen = telemetry(step, s.w_stiff, s.w_con, s.erk_scale)
        if s.erk is not None:
            push = norm(x - step.x).flatten()
            seen |= {"push": push, "gate": (push > 0).to(push.dtype)}
        self.rows.append(seen)

    def result(self) -> dict[str, Tensor]:
        return {name: torch.stack([row[name] for row in self.rows]) for name in TELEMETRY}


@torch.no_grad()
def sample(
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    solver: str | Solver = "heun",
    schedule: str | Sequence[float] = "edm",
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float | None = None,
    guide_model: Denoiser | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    w_stiff: float = 0.0,
    w_con: float = 0.5,
    dtype: torch.dtype = torch.float32,
    *,
    guide_labels: Tensor | None = None,
    randn_like: Noise = torch.randn_like,
    return_trajectory: bool = False,
    trace: bool = False,
    **settings: Any,
) -> Any:
    """Solve the probability-flow ODE from unit-variance `noise` [B, ...]; returns x0 [B, ...].

    `model` and `guide_model` are denoisers D(x, sigma, labels): an erk.Model or any callable.
    `solver` is a name or a function, `schedule` a name or a list of sigmas, `steps` its intervals,
    `dtype` that of the state and of x0 (networks see float32). `guide_labels` are for a guide that
    sees other labels. `settings` are the other fields of `Settings`: solver_options, erk,
    erk_scale, erk_proj, twin, S_churn, S_min, S_max, S_noise, afs, denoise_to_zero, adaptive_tau,
    pc_snr, pc_stochastic; `randn_like` draws the noise of the stochastic ones. With
    `return_trajectory` the states [steps + 1, B, ...] follow x0; with `trace` a dict of [steps, B]
    (see `guides.telemetry`) follows, last. Raises ValueError for settings that do not go together
    and NonFiniteError if the network produces NaN.
    """
    unknown = next((name for name in settings if name not in Settings.__dataclass_fields__), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, [*Settings.__dataclass_fields__], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise TypeError(f"sample() got an unexpected argument '{unknown}'{hint}")
    plan = Settings(
        solver, schedule, steps, sigma_min, sigma_max, rho, guidance, guidance_interval,
        w_stiff, w_con, dtype=dtype, **settings,
    )  # fmt: skip
    if isinstance(plan.erk, Card) and plan.erk.doubt:
        warnings.warn(plan.erk.doubt, stacklevel=3)  # beyond torch's no_grad
    drift = plan.drift(model, labels, guide_model, guide_labels)
    states = [noise.to(plan.dtype) * plan.sigmas(model)[0]]
    seen = Trace(plan)

    def watch(x: Tensor, step: Step) -> None:
        if return_trajectory:
            states.append(x)
        if trace:
            seen(x, step)

    answer: list[Any] = [solve(drift, noise, plan, randn_like, watch)]
    if return_trajectory:
        answer.append(torch.stack(states))
    if trace:
        answer.append(seen.result())
    return answer[0] if len(answer) == 1 else tuple(answer)

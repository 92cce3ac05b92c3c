"""The sampling loop: a solver and a guidance along a schedule, and the trajectory it yields."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from erk.method.arguments import require, takes
from erk.method.baselines import adaptive_heun, with_langevin
from erk.method.churn import Churn, Noise
from erk.method.corrections import FAR, LONGEST, WIDE, Correction, at_limit, error_ratio
from erk.method.drift import GuidedDrift, NonFiniteError
from erk.method.guidance import TELEMETRY, telemetry, unguided
from erk.method.point import Drift, Guidance, Point, Solver, Step, norm, to_double
from erk.method.settings import Settings, Twin, check_double
from erk.method.solvers import euler


def steps(
    drift: Drift,
    x: Tensor,
    sigmas: Tensor,
    solver: Solver,
    guidance: Guidance = unguided,
    churn: Churn | None = None,
) -> Iterator[tuple[Tensor, Step]]:
    """Run a solver along a schedule: the one sampling loop.

    An interval that ends at sigma = 0 is an Euler step without ERK-Guid: x becomes D, even where an
    analytic first step is set.

    Parameters
    ----------
    drift
        The drift of the ODE.
    x
        State at sigmas[0], [B, ...].
    sigmas
        Noise levels, [N + 1] on the CPU, in the dtype of x.
    solver
        Computes each step.
    guidance
        Corrects the solver's result.
    churn
        Adds noise before each step.

    Yields
    ------
    tuple[Tensor, Step]
        The state after each of the N intervals, [B, ...], and the solver's step.
    """
    require(isinstance(x, Tensor), "x", "a tensor [B, ...]", x)
    require(isinstance(sigmas, Tensor) and sigmas.ndim == 1, "sigmas", "a tensor [N + 1]", sigmas)
    functions: list[tuple[str, Any, str]] = [
        ("drift", drift, "(x, sigma)"),
        ("solver", solver, "(drift, x, sigma, sigma_next, memory)"),
        ("guidance", guidance, "(step, memory)"),
    ]
    functions += [] if churn is None else [("churn", churn, "(x, sigma)")]
    for name, function, arguments in functions:
        known = takes(function, arguments.count(",") + 1)
        require(known, name, f"a function of {arguments}", function)
    memory, kept = None, None
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if churn is not None:
            x, sigma = churn(x, sigma)
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)._replace(index=index)
            x = step.x
        else:
            step = solver(drift, x, sigma, sigma_next, memory)
            _check_step(step, x)
            step = step._replace(sigma_next=sigma_next, index=index)
            memory = step.memory
            x, kept = guidance(step, kept)
        yield x, step


def _check_step(step: Any, x: Tensor) -> None:
    """Raise ValueError unless a solver of one's own returned a Step of tensors like x."""
    require(isinstance(step, Step), "solver", "a function that returns an erk.Step", step)
    points = [point for point in (step.start, step.twin) if point is not None]
    for point in points:
        is_point = isinstance(point, Point)
        require(is_point, "solver", "a function whose start and twin are erk.Points", point)
    parts = [step.x, *(part for point in points for part in (point.x, point.f))]
    if step.origin is not None:
        parts.append(step.origin)
    wrong = [part for part in parts if not isinstance(part, Tensor) or part.shape != x.shape]
    if wrong:
        expected = f"a function whose Step and Points hold tensors {[*x.shape]}, as its x is"
        require(False, "solver", expected, wrong[0])


def loop(
    drift: GuidedDrift,
    x: Tensor,
    sigmas: Tensor,
    settings: Settings,
    randn_like: Noise = torch.randn_like,
    guidance: Guidance | None = None,
) -> Iterator[tuple[Tensor, Step]]:
    """Run `steps` with the solver, the guidance and the churn that `settings` ask for.

    Parameters
    ----------
    drift, x, sigmas
        As for `steps`, usually `settings.drift(...)` and `settings.sigmas(model)`.
    randn_like
        Draws the noise of stochastic settings.
    guidance
        Replaces the guidance of the settings.
    """
    drift.restart()
    if settings.adaptive_tau is not None:
        return adaptive_heun(drift, x, sigmas, settings.adaptive_tau)
    solver = settings.solver_for(sigmas, drift.model)
    if settings.pc_snr > 0:
        noise = randn_like if settings.pc_stochastic else None
        solver = with_langevin(solver, settings.pc_snr, noise)
    if settings.twin is not None:
        solver = with_twin(solver, settings.twin)
    if guidance is None:
        guidance = settings.correction(sigmas, drift.model)
    churn = settings.churn(drift.model, len(sigmas) - 1, randn_like)
    return steps(drift, x, sigmas, solver, guidance or unguided, churn)


def with_twin(solver: Solver, choose: Twin) -> Solver:
    """Return `solver` with another pair: choose(step, the previous step or None) -> (twin, h)."""

    def paired(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        inner, previous = memory or (None, None)
        step = solver(drift, x, sigma, sigma_next, inner)._replace(sigma_next=sigma_next)
        twin, h = choose(step, previous)
        return step._replace(twin=twin, h=h, memory=(step.memory, step))

    return paired


@dataclass(frozen=True)
class State:
    """One step of a trajectory, whose quantities are computed only when they are read."""

    x: Tensor  # the state that the run goes on from, at sigma_next      [B, ...]
    step: Step
    settings: Settings

    @property
    def sigma(self) -> Tensor:
        """Noise level at which the step began, []."""
        return self.step.start.sigma

    @property
    def sigma_next(self) -> Tensor:
        """Noise level of x, []."""
        assert self.step.sigma_next is not None  # the loop fills it in
        return self.step.sigma_next

    @property
    def index(self) -> int:
        """Number of the step, from 0."""
        return self.step.index

    @property
    def denoised(self) -> Tensor:
        """D(x; sigma) at the start of the step, model guidance included, [B, ...]."""
        x, f, sigma = self.step.start
        return x - sigma * f

    @property
    def correction(self) -> Tensor:
        """What the correction added to the solver's result, [B, ...]."""
        return self.x - self.step.x

    @property
    def stiffness(self) -> Tensor:
        """Estimated stiffness rho at the start of the step, [B]; NaN without a pair (Eq. 17)."""
        return self.telemetry["stiffness"]

    @property
    def gate(self) -> Tensor:
        """1 where the sample is corrected, else 0, [B]; NaN without a pair."""
        return self.telemetry["gate"]

    @cached_property
    def telemetry(self) -> dict[str, Tensor]:
        """All quantities of the guidance, each [B] (see `guidance.telemetry`)."""
        s = self.settings
        values = telemetry(self.step, s.w_stiff, s.w_con, s.erk_scale)
        if s.erk is not None:
            push = norm(self.correction).flatten()
            values |= {"push": push, "gate": (push > 0).to(push.dtype)}
        elif s.w_stiff == 0 or s.erk_proj:  # the solver's answer stands; NaN stays NaN
            values |= {name: 0 * values[name] for name in ("push", "gate")}
        return values


Callback = Callable[[State], None]


def integrate(
    drift: GuidedDrift, noise: Tensor, settings: Settings, randn_like: Noise = torch.randn_like
) -> Iterator[State]:
    """Solve the ODE from unit-variance noise [B, ...]; raise NonFiniteError at the end."""
    sigmas = settings.sigmas(drift.model)
    check_double(sigmas.dtype, noise.device)
    start = noise.to(sigmas.dtype) * sigmas[0]
    for x, step in finite(loop(drift, start, sigmas, settings, randn_like), drift, sigmas):
        yield State(x, step, settings)


def finite(
    run: Iterator[tuple[Tensor, Step]], drift: GuidedDrift, sigmas: Tensor
) -> Iterator[tuple[Tensor, Step]]:
    """Yield the states and steps of a run; raise NonFiniteError after the last one.

    The check sums each sample on the device and reads the sums once, so that a GPU never waits.
    """
    sums = []
    for x, step in run:
        sums.append(sums_of(x))
        yield x, step
    bad = (~torch.stack(sums).isfinite()).nonzero()
    if len(bad):
        index, sample = bad[0].tolist()
        raise NonFiniteError(sample, index, sigmas[index].item(), drift.in_half)


def sums_of(x: Tensor) -> Tensor:
    """Return the sum of each sample of x [B, ...], [B], which NaN and infinity pass through."""
    return x.flatten(1).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))


def solve(
    drift: GuidedDrift,
    noise: Tensor,
    settings: Settings,
    randn_like: Noise = torch.randn_like,
    callback: Callback | None = None,
) -> Tensor:
    """Return the last state of `integrate`, x0 [B, ...]; `callback` is called with every State."""
    x0, long, limit = noise, [], _limit(settings)
    for state in integrate(drift, noise, settings, randn_like):
        x0 = state.x
        if limit is not None:
            long.append(at_limit(state.step, state.x, limit))
        if callback is not None:
            callback(state)
    if settings.erk == "auto":
        _warn_if_wide(drift, x0, settings)
    if long:
        _warn_of_outliers(torch.stack(long).any(0), settings)
    return x0


def _limit(settings: Settings) -> float | None:
    """Return the length of corrections, in steps, that a run warns of; None: of no length."""
    if isinstance(settings.erk, Correction):
        return LONGEST
    return FAR if settings.w_stiff > 0 and not settings.erk_proj else None


def _warn_of_outliers(long: Tensor, settings: Settings) -> None:
    """Warn of samples with a correction of the length `_limit`, [B] bool."""
    if not long.any():
        return
    first = f"(first for sample {int(long.int().argmax())} of the batch)"
    if isinstance(settings.erk, Correction):
        text = (
            f"corrections are longer than {LONGEST:g} times the solver's step and were shortened "
            f"{first}: such samples are unlike those that the card was fitted on. Sample without "
            "the card, or calibrate with more seeds."
        )
    else:
        text = (
            f"corrections are longer than {FAR:g} times the solver's step {first}: w_stiff "
            f"{settings.w_stiff:g} is too large for such samples, which end far off. Lower it, "
            "raise w_con or take more steps."
        )
    warnings.warn(text, stacklevel=5)  # the caller of erk.sample


def _warn_if_wide(drift: GuidedDrift, x0: Tensor, settings: Settings) -> None:
    """Warn if `auto` raises the error on Gaussian data of the deviation of the samples x0."""
    scale = to_double(x0).std(correction=0).item()
    if scale <= WIDE:
        return
    sigmas = settings.sigmas(drift.model)
    ratio = error_ratio(settings.solver_for(sigmas, drift.model), sigmas, scale)
    if ratio > 1:
        warnings.warn(
            f"the samples have standard deviation {scale:.3g}, and on Gaussian data that wide "
            f"erk='auto' multiplies the error of this solver and schedule by {ratio:.3g}: scale "
            "the data to about 0.5, raise sigma_max, or leave erk out.",
            stacklevel=5,  # the caller of erk.sample
        )


class Trace:
    """A callback that collects telemetry step by step."""

    def __init__(self) -> None:
        self.levels: list[Tensor] = []
        self.rows: list[dict[str, Tensor]] = []

    def __call__(self, state: State) -> None:
        """Append the telemetry of one step."""
        require(isinstance(state, State), "state", "an erk.State", state)
        self.levels.append(state.sigma)
        self.rows.append(state.telemetry)

    @property
    def sigmas(self) -> Tensor:
        """Noise levels at which the steps began, [steps]; ValueError if there are none."""
        self._check()
        return torch.stack(self.levels)

    def result(self) -> dict[str, Tensor]:
        """Return {name: [steps, B]} for the names of `guidance.TELEMETRY`.

        Raises ValueError without any step.
        """
        self._check()
        return {name: torch.stack([row[name] for row in self.rows]) for name in TELEMETRY}

    def _check(self) -> None:
        if not self.rows:
            raise ValueError("this trace has no steps: sample with callback=trace first.")

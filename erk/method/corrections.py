"""ERK-Guid without weights to choose: embedded differences, with coefficients per step.

A solver's answer differs from Euler's, from the same start, by its embedded difference
e = x - (x_i + h f_i), h = sigma_{i+1} - sigma_i. It is known at no cost, and the local error of the
solver lies largely along it (docs/theory.md). A correction adds multiples of such directions to
every answer. Its coefficients are computed from the solver and the noise levels alone (`auto`) or
fitted to a network (erk calibrate).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.guidance import erk_push, unguided
from erk.method.point import Guidance, Point, Solver, Step, norm

LARGEST = 0.5
"""Largest multiple of an embedded difference that `auto` adds or removes."""
SHARE = 0.5
"""Minimum fraction of squared error `auto` must remove under every prior; otherwise disabled."""
SCALES = torch.linspace(-12.0, 7.0, 600, dtype=torch.float64).exp()[:, None]
"""Standard deviations S of one-dimensional Gaussian data, evenly spaced in ln S, [600, 1]."""
WIDEST = (0.02, 0.1, 0.5, 2.0, 8.0, torch.inf)
FINEST = (0.0, 0.03)
"""Priors of data: all scales S between these ends, equally frequent as in a power law."""
WIDE = 1.0
"""Deviation of samples above which a run with `auto` is checked."""
LONGEST = 2.0
"""Longest correction of a sample, in steps (`length`); longer ones are shortened."""
FAR = 10.0
"""Length of a correction by w_stiff, in steps, from which a run warns; none is shortened.

At 16 and 32 steps of heun on the embedded networks it is at most 2.3 with w_stiff up to 2.5, and at
16 steps with w_stiff 10, where samples reach 500 and more, at least 20.
"""
REACH = 2  # previous steps that a direction looks at

Previous = tuple[Point, ...]
"""Where the previous steps began, the latest first, at most REACH of them."""


def embedded(step: Step, previous: Previous = ()) -> Tensor:
    """Return the difference from Euler's answer, [B, ...]; for Euler itself `pair`."""
    difference = step.x - step.euler
    return torch.where(difference.any(), difference, pair(step, previous))


def drift(step: Step, previous: Previous = ()) -> Tensor:
    """Return h f_i, [B, ...]."""
    return step.length * step.start.f


def pair(step: Step, previous: Previous = ()) -> Tensor:
    """Return h (f_i - f_twin), [B, ...]: along ERK-Guid's v (Eq. 18); zero without a pair."""
    start, twin = step.start, step.twin
    return torch.zeros_like(start.f) if twin is None else step.length * (start.f - twin.f)


def change(step: Step, previous: Previous = ()) -> Tensor:
    """Return h (f_i - f_{i-1}), [B, ...]: the drift's first difference; zero in the first step."""
    f = step.start.f
    return step.length * (f - previous[0].f) if previous else torch.zeros_like(f)


def bend(step: Step, previous: Previous = ()) -> Tensor:
    """Return h (f_i - 2 f_{i-1} + f_{i-2}), [B, ...]; zero in the first two steps."""
    f = step.start.f
    if len(previous) < 2:
        return torch.zeros_like(f)
    return step.length * (f - 2 * previous[0].f + previous[1].f)


def stiff(step: Step, previous: Previous = ()) -> Tensor:
    """Return ERK-Guid's correction (Eq. 19) at w_stiff = 1 without its gate, [B, ...]."""
    correction = erk_push(step, 1.0, 0.0)
    return torch.zeros_like(step.x) if correction is None else -correction.push


DIRECTIONS: dict[str, Callable[[Step, Previous], Tensor]] = {
    "embedded": embedded,
    "drift": drift,
    "pair": pair,
    "change": change,
    "bend": bend,
    "stiff": stiff,
}


def length(step: Step, x: Tensor) -> Tensor:
    """Return the length of the corrections x - step.x [B, ...] in steps, [B, 1, ...].

    Of the solver's step and Euler's the longer counts: one of them can be near 0 where a correction
    is due (two terms that cancel, an answer that overshoots). Float16 ends at 65504, which
    differences and the norm of many numbers exceed, so lengths are float32 at least.
    """
    before, x = _wide(step.before), _wide(x)
    steps = torch.maximum(norm(step.x - before), norm(step.euler - before))
    return norm(x - step.x) / steps


def shortened(step: Step, x: Tensor) -> Tensor:
    """Return corrected states x [B, ...] of which no correction is longer than LONGEST steps.

    Coefficients suit the samples they were fitted on; on one that is unlike these a direction can
    be longer than the step by orders of magnitude.
    """
    excess = length(step, x) / LONGEST
    short = step.x + (_wide(x) - step.x) / excess
    return torch.where(excess > 1, short.to(x.dtype), x)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at_limit(step: Step, x: Tensor, limit: float = LONGEST) -> Tensor:
    """Return which states x [B, ...] have a correction of `limit` steps, but for rounding, [B]."""
    return (length(step, x) > (1 - 1e-5) * limit).flatten()


@dataclass(frozen=True)
class Correction:
    """A guidance that adds multiples of `DIRECTIONS` to the result of every step, `shortened`."""

    sigmas: tuple[float, ...]  # noise levels, [N + 1]
    directions: tuple[str, ...]  # names in DIRECTIONS, K of them
    weights: tuple[tuple[float, ...], ...]  # of each step, [N][K]

    def __call__(self, step: Step, memory: Previous | None = None) -> tuple[Tensor, Previous]:
        """Return the corrected state [B, ...]; the memory is where the latest steps began."""
        previous, x = memory or (), step.x
        for name, weight in zip(self.directions, self.weights[step.index], strict=True):
            if weight:
                x = x + weight * DIRECTIONS[name](step, previous)
        return shortened(step, x), (step.start, *previous)[:REACH]

    @property
    def acts(self) -> bool:
        """Whether any coefficient is not 0."""
        return any(map(any, self.weights))

    def warn_if_idle(self, solver: str, stacklevel: int) -> None:
        """Warn of a correction by `auto` that corrects nothing."""
        if not self.acts:
            warnings.warn(
                f"erk='auto' finds no multiple that suits all data for the solver {solver} at "
                "these noise levels, so the samples are the plain solver's: take heun or dpm2, or "
                "calibrate a card.",
                stacklevel=stacklevel,
            )

    def check_levels(self, sigmas: Tensor) -> None:
        """Raise ValueError unless this correction is for the noise levels `sigmas` [N + 1]."""
        here = sigmas[sigmas > 0]
        there = torch.tensor([level for level in self.sigmas if level > 0], dtype=torch.float64)
        if (
            len(there) != len(here)
            or len(self.weights) != len(there) - 1
            or not torch.allclose(there, here.double(), rtol=1e-4, atol=0)
        ):
            raise ValueError(
                f"the correction is for other noise levels ({_describe(there)}; this run has "
                f"{_describe(here)}): compute one for these (erk calibrate)."
            )


def _describe(levels: Tensor) -> str:
    return f"{len(levels)} from {levels[0]:g} to {levels[-1]:g}" if len(levels) else "none"


def auto(solver: Solver, sigmas: Tensor) -> Correction:
    """Compute the correction that a solver needs on Gaussian data, without any network.

    On one-dimensional Gaussian data of scale S the ODE has a solution, proportional to sqrt(S^2 +
    sigma^2), so that the solver's local error is known exactly. Least squares over S gives the
    multiple of the embedded difference that removes most of it. Different priors of S give
    different multiples. The one nearest to 0 is used, limited to LARGEST in size; it is 0 where the
    multiples differ in sign, or where under any prior less than SHARE of the squared error would be
    removed. If under any prior less than SHARE of the squared error at the end of the trajectory
    would be removed, all multiples are 0.

    Parameters
    ----------
    solver
        The solver, bound to the noise levels (`Settings.solver_for`).
    sigmas
        Noise levels of the run, [N + 1] on the CPU.

    Returns
    -------
    Correction
        One coefficient per step. Deterministic; takes about ten milliseconds.
    """
    require(callable(solver), "solver", "a function (Settings.solver_for)", solver)
    require(isinstance(sigmas, Tensor), "sigmas", "a tensor [N + 1]", sigmas)
    levels, priors = sigmas[sigmas > 0].double(), _priors()
    weights, memory = [], None
    for sigma, sigma_next in pairwise(levels):
        step = solver(_gaussian, _exact(sigma), sigma, sigma_next, memory)
        step = step._replace(sigma_next=sigma_next)
        memory = step.memory
        error = _exact(sigma_next) - step.x
        weights.append((_agreed(error, embedded(step), priors),))
    correction = Correction(tuple(levels.tolist()), ("embedded",), tuple(weights))
    plain, better = (
        priors @ (_end(solver, levels, guidance) - _exact(levels[-1]))[:, 0].square()
        for guidance in (unguided, correction)
    )
    if (better > (1 - SHARE) * plain).any():
        correction = replace(correction, weights=((0.0,),) * len(weights))
    return correction


def error_ratio(solver: Solver, sigmas: Tensor, scale: float) -> float:
    """Return the error with `auto` / without it, of a run on Gaussian data of deviation `scale`.

    Above 1 `auto` hurts: where data are wider than sigma_max supports.
    """
    levels = sigmas[sigmas > 0].double()
    nearest = (SCALES - scale).abs().argmin()
    plain, better = (
        (_end(solver, levels, guidance) - _exact(levels[-1])).abs()[nearest].item()
        for guidance in (unguided, auto(solver, sigmas))
    )
    return better / plain if plain > 0 else 1.0


def _end(solver: Solver, levels: Tensor, guidance: Guidance) -> Tensor:
    """Return the last state of a run on Gaussian data, [600, 1]."""
    x, memory, kept = _exact(levels[0]), None, None
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        step = solver(_gaussian, x, sigma, sigma_next, memory)
        step = step._replace(sigma_next=sigma_next, index=index)
        memory = step.memory
        x, kept = guidance(step, kept)
    return x


def _gaussian(x: Tensor, sigma: Tensor) -> Point:
    """Evaluate the exact drift for data of the deviations SCALES."""
    return Point(x, x * sigma / (SCALES**2 + sigma**2), sigma)


def _exact(sigma: Tensor) -> Tensor:
    """Return a solution of that ODE, [600, 1]."""
    return (SCALES**2 + sigma**2).sqrt()


def _priors() -> Tensor:
    """Return the weight of each scale under each prior, [priors, 600]."""
    weights = [
        1 / (1 + (SCALES / widest) ** 2) * SCALES**2 / (SCALES**2 + finest**2)
        for widest in WIDEST
        for finest in FINEST
    ]
    return torch.stack(weights)[..., 0]


def _agreed(error: Tensor, e: Tensor, priors: Tensor) -> float:
    """Return the multiple of e [600, 1] that suits all priors, for an error [600, 1]."""
    size = priors @ e[:, 0].square()
    if (size <= 0).any():
        return 0.0
    best = priors @ (error * e)[:, 0] / size
    if best.min() * best.max() <= 0:
        return 0.0
    weight = best[best.abs().argmin()].clamp(-LARGEST, LARGEST)
    left = priors @ (error - weight * e)[:, 0].square() / (priors @ error[:, 0].square())
    return 0.0 if left.max() > 1 - SHARE else weight.item()

"""ERK-Guid without knobs: a step's own embedded difference, with a coefficient of its own per step.

A solver's answer differs from Euler's, from the same start, by its embedded difference
e = x - (x_i + h f_i), h = sigma_{i+1} - sigma_i. It is known at no cost, and the solver's own error
lies largely along it (docs/theory.md). A correction adds multiples of such directions to every
answer. Its coefficients are computed from the solver and the noise levels alone (`auto`) or
fitted to a network once (scripts/calibrate.py).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .drift import analytic_first
from .guides import erk_push, unguided
from .point import Drift, Guide, Point, Solver, Step

MOST = 0.5  # of an embedded difference, that `auto` ever adds or removes
SHARE = 0.5  # of the squared error, that `auto` must remove for every kind of data to act at all
SCALES = torch.linspace(-12.0, 7.0, 600, dtype=torch.float64).exp()[:, None]
"""Standard deviations S of one-dimensional Gaussian data, evenly spaced in their logarithm."""
WIDEST = (0.02, 0.1, 0.5, 2.0, 8.0, torch.inf)
FINEST = (0.0, 0.03)
"""Kinds of data: all scales S between these ends, equally frequent as in a power law."""


class Correction(NamedTuple):
    """Coefficients of the directions that are added to every step's answer."""

    sigmas: tuple[float, ...]  # noise levels, [N + 1]
    directions: tuple[str, ...]  # names in DIRECTIONS, K of them
    weights: tuple[tuple[float, ...], ...]  # of each step, [N][K]


Before = tuple[Point, ...]
"""Where the steps before began, the latest first."""


def embedded(step: Step, h: Tensor, before: Before = ()) -> Tensor:
    """What the solver adds to Euler's answer, [B, ...]; for Euler itself the `pair` direction."""
    difference = step.x - (step.start.x + h * step.start.f)
    return torch.where(difference.any(), difference, pair(step, h))


def drift(step: Step, h: Tensor, before: Before = ()) -> Tensor:
    """h f_i, [B, ...]."""
    return h * step.start.f


def pair(step: Step, h: Tensor, before: Before = ()) -> Tensor:
    """h (f_i - f_twin), [B, ...]: along ERK-Guid's v (Eq. 18); zero while there is no pair."""
    if step.twin is None:
        return torch.zeros_like(step.x)
    return h * (step.start.f - step.twin.f)


def change(step: Step, h: Tensor, before: Before = ()) -> Tensor:
    """h (f_i - f_{i-1}), [B, ...]: the first difference of the drift; zero in the first step."""
    if not before:
        return torch.zeros_like(step.x)
    return h * (step.start.f - before[0].f)


def bend(step: Step, h: Tensor, before: Before = ()) -> Tensor:
    """h (f_i - 2 f_{i-1} + f_{i-2}), [B, ...]: the second one; zero in the first two steps."""
    if len(before) < 2:
        return torch.zeros_like(step.x)
    return h * (step.start.f - 2 * before[0].f + before[1].f)


def stiff(step: Step, h: Tensor, before: Before = ()) -> Tensor:
    """ERK-Guid's own correction (Eq. 19) at w_stiff = 1 without its gate, [B, ...]."""
    made = erk_push(step, 1.0, 0.0)
    return torch.zeros_like(step.x) if made is None else -made.push


DIRECTIONS: dict[str, Callable[[Step, Tensor, Before], Tensor]] = {
    "embedded": embedded,
    "drift": drift,
    "pair": pair,
    "change": change,
    "bend": bend,
    "stiff": stiff,
}
REACH = 2  # steps back that a direction looks


def corrected(correction: Correction) -> Guide:
    """The guide that adds the correction to every answer; a step without weights stays as it is.

    One guide serves one run: it remembers where the last steps began. Raises ValueError where a
    step starts at a noise level that the correction does not know.
    """
    levels = torch.tensor(correction.sigmas, dtype=torch.float64)
    before: list[Point] = []

    def guide(step: Step) -> Tensor:
        place = int((levels - step.start.sigma).abs().argmin())
        if not torch.isclose(levels[place], step.start.sigma.double(), rtol=1e-4):
            raise ValueError(
                f"the correction has no coefficients for sigma {step.start.sigma:g}: it was made "
                "for other noise levels; make one for these (scripts/calibrate.py)."
            )
        x, h = step.x, (levels[place + 1] - levels[place]).to(step.x.dtype)
        for name, weight in zip(correction.directions, correction.weights[place], strict=True):
            if weight:
                x = x + weight * DIRECTIONS[name](step, h, tuple(before))
        before[:] = [step.start, *before][:REACH]
        return x

    return guide


def auto(make: Callable[[], Solver], sigmas: Tensor, afs: bool = False) -> Correction:
    """The correction that a solver needs on Gaussian data of every scale; no network is asked.

    On one-dimensional Gaussian data the ODE has a solution, proportional to sqrt(S^2 + sigma^2),
    so that the solver's local error is known exactly. Least squares over the scales S that data may
    have gives the multiple of the embedded difference that removes most of it. Different kinds of
    data give different multiples: of these the one nearest to 0 is taken, at most MOST, and none
    where they differ in sign or where less than SHARE of the squared error would go for one of
    them. What is left must remove as much of the error of the whole way; otherwise nothing acts.

    `make` gives a fresh solver, sigmas [N + 1] on the CPU. Deterministic; some ten milliseconds.
    """
    levels, priors = sigmas[sigmas > 0].double(), _priors()
    field: Drift = analytic_first(_gaussian) if afs else _gaussian
    solver, weights, memory = make(), [], None
    for sigma, sigma_next in pairwise(levels):
        step = solver(field, _exact(sigma), sigma, sigma_next, memory)
        memory = step.memory
        error, e = _exact(sigma_next) - step.x, embedded(step, sigma_next - sigma)
        weights.append((_agreed(error, e, priors),))
    found = Correction(tuple(levels.tolist()), ("embedded",), tuple(weights))
    plain, better = (
        priors @ (_end(make(), levels, guide, afs) - _exact(levels[-1]))[:, 0].square()
        for guide in (unguided, corrected(found))
    )
    if (better > (1 - SHARE) * plain).any():
        found = found._replace(weights=((0.0,),) * len(weights))
    return found


def _end(solver: Solver, levels: Tensor, guide: Guide, afs: bool) -> Tensor:
    """Where the solver ends on Gaussian data, [600, 1]."""
    field: Drift = analytic_first(_gaussian) if afs else _gaussian
    x, memory = _exact(levels[0]), None
    for sigma, sigma_next in pairwise(levels):
        step = solver(field, x, sigma, sigma_next, memory)
        x, memory = guide(step), step.memory
    return x


def _gaussian(x: Tensor, sigma: Tensor) -> Point:
    """The exact drift for data of the deviations SCALES."""
    return Point(x, x * sigma / (SCALES**2 + sigma**2), sigma)


def _exact(sigma: Tensor) -> Tensor:
    """A solution of that drift, [600, 1]."""
    return (SCALES**2 + sigma**2).sqrt()


def _priors() -> Tensor:
    """How frequent each scale is, [kinds of data, 600]."""
    found = [
        1 / (1 + (SCALES / widest) ** 2) * SCALES**2 / (SCALES**2 + finest**2)
        for widest in WIDEST
        for finest in FINEST
    ]
    return torch.stack(found)[..., 0]


def _agreed(error: Tensor, e: Tensor, priors: Tensor) -> float:
    """The multiple of e [600, 1] that all kinds of data agree on, for an error [600, 1]."""
    size = priors @ e[:, 0].square()
    if (size <= 0).any():
        return 0.0
    best = priors @ (error * e)[:, 0] / size
    if best.min() * best.max() <= 0:
        return 0.0
    weight = best[best.abs().argmin()].clamp(-MOST, MOST)
    left = priors @ (error - weight * e)[:, 0].square() / (priors @ error[:, 0].square())
    return 0.0 if left.max() > 1 - SHARE else weight.item()

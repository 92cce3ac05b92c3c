"""ERK-Guid without knobs: a step's own embedded difference, with a coefficient of its own per step.

A solver's answer differs from Euler's, from the same start, by its embedded difference
e = x - (x_i + h f_i), h = sigma_{i+1} - sigma_i. It is known at no cost, and the solver's own error
lies largely along it (docs/theory.md). A correction adds multiples of such directions to every
answer. Its coefficients are computed from the solver and the noise levels alone (`auto`) or
fitted to a network once (erk calibrate).
"""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.method.drift import analytic_first
from erk.method.guidance import erk_push, unguided
from erk.method.point import Drift, Guide, Point, Solver, Step

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


class Card(NamedTuple):
    """A correction and what it is for."""

    correction: Correction
    made_for: dict[str, Any]  # values of RECIPE and NETWORKS
    ratio: tuple[float, ...] | None = None  # of held-out errors after / before; standard error

    @property
    def key(self) -> str:
        """Names what the card does: equal coefficients for the same case, equal samples."""
        told = json.dumps([self.correction, self.made_for], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def doubt(self) -> str:
        """A sentence if the card did not lower the error when it was made, "" if it did."""
        if self.ratio is None or not no_gain(*self.ratio):
            return ""
        value, error = self.ratio
        return (
            f"this card did not help when it was made (error {value:.3f} +- {error:.3f} of the "
            "plain solver's on held-out seeds): leave it out."
        )


def no_gain(ratio: float, error: float) -> bool:
    """Whether a held-out ratio of errors is not below 1 by its standard error."""
    return ratio + error > 1


def networks(model: Any, guide_model: Any, guidance: float) -> dict[str, Any]:
    """Which files the denoisers come from, by sha256; no guide where none acts."""
    guide = None if guidance == 1 else getattr(guide_model, "sha256", "")
    return {"network": getattr(model, "sha256", ""), "guide": guide}


def check_card(card: Card, here: dict[str, Any]) -> None:
    """ValueError, one sentence with the differing keys, if the card is for something else."""
    there = card.made_for
    pairs = [
        f"{key} {_short(there[key])} there, {_short(value)} here"
        for key, value in here.items()
        if there[key] != value
    ]
    if pairs:
        raise ValueError(
            f"this card was made for something else ({'; '.join(pairs)}): make one for this "
            "(erk calibrate), or sample with the card's settings."
        )


def _short(value: Any) -> str:
    """A value in a message: not longer than a line, files by the beginning of their hash."""
    text = str(value)
    if len(text) == 64 and text.isalnum():
        return text[:12]
    return text if len(text) <= 80 else text[:77] + "..."


class Seen(NamedTuple):
    """What directions are made of."""

    step: Step
    x: Tensor  # where the solver began, [B, ...]: start.x but for UniPC, whose start is predicted
    h: Tensor  # sigma_{i+1} - sigma_i, []
    before: tuple[Point, ...] = ()  # where the steps before began, the latest first


def embedded(seen: Seen) -> Tensor:
    """What the solver adds to Euler's answer, [B, ...]; for Euler itself the `pair` direction."""
    difference = seen.step.x - (seen.x + seen.h * seen.step.start.f)
    return torch.where(difference.any(), difference, pair(seen))


def drift(seen: Seen) -> Tensor:
    """h f_i, [B, ...]."""
    return seen.h * seen.step.start.f


def pair(seen: Seen) -> Tensor:
    """h (f_i - f_twin), [B, ...]: along ERK-Guid's v (Eq. 18); zero while there is no pair."""
    start, twin = seen.step.start, seen.step.twin
    return torch.zeros_like(start.f) if twin is None else seen.h * (start.f - twin.f)


def change(seen: Seen) -> Tensor:
    """h (f_i - f_{i-1}), [B, ...]: the first difference of the drift; zero in the first step."""
    f = seen.step.start.f
    return seen.h * (f - seen.before[0].f) if seen.before else torch.zeros_like(f)


def bend(seen: Seen) -> Tensor:
    """h (f_i - 2 f_{i-1} + f_{i-2}), [B, ...]: the second one; zero in the first two steps."""
    f = seen.step.start.f
    if len(seen.before) < 2:
        return torch.zeros_like(f)
    return seen.h * (f - 2 * seen.before[0].f + seen.before[1].f)


def stiff(seen: Seen) -> Tensor:
    """ERK-Guid's own correction (Eq. 19) at w_stiff = 1 without its gate, [B, ...]."""
    made = erk_push(seen.step, 1.0, 0.0)
    return torch.zeros_like(seen.step.x) if made is None else -made.push


DIRECTIONS: dict[str, Callable[[Seen], Tensor]] = {
    "embedded": embedded,
    "drift": drift,
    "pair": pair,
    "change": change,
    "bend": bend,
    "stiff": stiff,
}
REACH = 2  # steps back that a direction looks


def corrected(correction: Correction, sigmas: Tensor) -> Guide:
    """The guide that adds the correction to every answer of a run with noise levels [N + 1].

    One guide serves one run: it remembers where the last steps began. Raises ValueError where the
    correction was made for other noise levels.
    """
    levels = sigmas[sigmas > 0]
    check_levels(correction, levels)
    carried: list[Tensor] = []
    before: list[Point] = []

    def guide(step: Step) -> Tensor:
        place = int((levels - step.start.sigma).abs().argmin())
        began = carried[0] if carried else step.start.x
        seen = Seen(step, began, levels[place + 1] - levels[place], tuple(before))
        x = step.x
        for name, weight in zip(correction.directions, correction.weights[place], strict=True):
            if weight:
                x = x + weight * DIRECTIONS[name](seen)
        before[:] = [step.start, *before][:REACH]
        carried[:] = [x]
        return x

    return guide


def check_levels(correction: Correction, levels: Tensor) -> None:
    """ValueError unless the correction has weights for these levels above 0, and no others."""
    own = torch.tensor([sigma for sigma in correction.sigmas if sigma > 0], dtype=torch.float64)
    if (
        len(own) != len(levels)
        or len(correction.weights) != len(own) - 1
        or not torch.allclose(own, levels.double(), rtol=1e-4, atol=0)
    ):
        raise ValueError(
            f"the correction was made for other noise levels ({_told(own)}; here "
            f"{_told(levels)}): make one for these (erk calibrate)."
        )


def _told(levels: Tensor) -> str:
    return f"{len(levels)} from {levels[0]:g} to {levels[-1]:g}" if len(levels) else "none"


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
        error = _exact(sigma_next) - step.x
        e = embedded(Seen(step, _exact(sigma), sigma_next - sigma))
        weights.append((_agreed(error, e, priors),))
    found = Correction(tuple(levels.tolist()), ("embedded",), tuple(weights))
    plain, better = (
        priors @ (_end(make(), levels, guide, afs) - _exact(levels[-1]))[:, 0].square()
        for guide in (unguided, corrected(found, levels))
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

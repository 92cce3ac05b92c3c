"""The paper's rivals: other ways to spend, or not to spend, evaluations on stiffness.

Adaptive step size by a stiffness threshold (Table 10) is a second loop over the same Step; the
Langevin predictor-corrector (Table 11) is a solver wrapped around another.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .drift import GuidedDrift
from .point import Drift, Point, Solver, Step, norm
from .solvers import euler, heun
from .stiffness import stiffness


def with_langevin(
    solver: Solver, snr: float, randn_like: Callable[[Tensor], Tensor] | None
) -> Solver:
    """`solver` followed by one Langevin corrector step at sigma_next (Song et al. 2021, Alg. 4).

    With the score s = -f / sigma and unit noise e the state moves by step s + sqrt(2 step) e,
    step = 2 (snr |e| / |s|)^2, norms per sample (not over the batch, so that samples do not
    depend on their mates). `randn_like` None drops the noise; |e| is then its expected size.
    One more evaluation per step; its state has no pair, so ERK-Guid is not combined with it.
    """

    def corrected(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        step = solver(drift, x, sigma, sigma_next, memory)
        score = -drift(step.x, sigma_next).f / sigma_next
        noise = None if randn_like is None else randn_like(step.x)
        size = math.sqrt(x[0].numel()) if noise is None else norm(noise)
        length = 2 * (snr * size / norm(score)) ** 2
        moved = step.x + length * score
        if noise is not None:
            moved = moved + (2 * length).sqrt() * noise
        return step._replace(x=moved, twin=None)

    return corrected


def adaptive_heun(
    drift: GuidedDrift, x: Tensor, sigmas: Tensor, tau: float
) -> Iterator[tuple[Tensor, Step]]:
    """Heun on the nodes `sigmas`; an interval is halved once where the stiffness exceeds `tau`.

    Each sample decides for itself, from ERK-Guid's own estimate at the start of the interval.
    Both ways run on the whole batch and each sample keeps its own, so that no bit of it depends
    on its mates; `drift.nfe` counts what each sample needs, on average over the batch (a halved
    interval costs 4 evaluations in place of 2). Yields as `sampler.steps` does.
    """
    twin: Point | None = None
    for sigma, sigma_next in pairwise(sigmas):
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)
            yield step.x, step
            continue
        step, whole = _counted(drift, lambda: heun(drift, x, sigma, sigma_next, twin))  # noqa: B023
        if twin is not None:
            stiff = stiffness(step.start, twin).rho > tau
            share = stiff.to(torch.float32).mean().item()
            if share > 0:
                halves, split = _counted(
                    drift, lambda: _two_halves(drift, step.start, sigma_next)  # noqa: B023
                )
                kept = _select(stiff, halves.memory, step.memory)
                step = step._replace(x=torch.where(stiff, halves.x, step.x), memory=kept)
                # the first half begins where the whole interval does: that call is shared
                for name in ("nfe", "guide_nfe"):
                    at_start = whole[name] / 2
                    spent = share * (at_start + split[name]) + (1 - share) * whole[name]
                    setattr(drift, name, getattr(drift, name) - whole[name] - split[name] + spent)
        x, twin = step.x, step.memory
        yield x, step


def _two_halves(drift: Drift, start: Point, sigma_next: Tensor) -> Step:
    """Two Heun steps of half the size from a point whose drift is known: 3 evaluations."""
    sigma = (start.sigma + sigma_next) / 2
    end = drift(start.x + (sigma - start.sigma) * start.f, sigma)
    middle = start.x + (sigma - start.sigma) * (0.5 * start.f + 0.5 * end.f)
    return heun(drift, middle, sigma, sigma_next)


def _select(mask: Tensor, a: Point, b: Point) -> Point:
    return Point(torch.where(mask, a.x, b.x), torch.where(mask, a.f, b.f), b.sigma)


def _counted(drift: GuidedDrift, work: Callable[[], Step]) -> tuple[Step, dict[str, float]]:
    """The step and the evaluations it took."""
    before = {"nfe": drift.nfe, "guide_nfe": drift.guide_nfe}
    step = work()
    return step, {name: getattr(drift, name) - old for name, old in before.items()}

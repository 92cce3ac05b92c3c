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

from erk.method.drift import GuidedDrift
from erk.method.point import Drift, Point, Solver, Step, norm
from erk.method.solvers import euler, heun, heun_from
from erk.method.stiffness import stiffness


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
    on its mates; `drift.nfe` becomes [B], what each sample needs (a halved interval costs 4
    evaluations in place of 2). Yields as `sampler.steps` does.
    """
    twin: Point | None = None
    for sigma, sigma_next in pairwise(sigmas):
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)
            yield step.x, step
            continue
        start = drift(x, sigma)
        before = _spent(drift)
        step = heun_from(drift, start, sigma_next)._replace(twin=twin)
        after_whole = _spent(drift)
        if twin is not None:
            stiff = stiffness(start, twin).rho > tau
            if stiff.any():
                middle = heun_from(drift, start, (sigma + sigma_next) / 2)
                halves = heun(drift, middle.x, (sigma + sigma_next) / 2, sigma_next)
                kept = _select(stiff, halves.memory, step.memory)
                step = step._replace(x=torch.where(stiff, halves.x, step.x), memory=kept)
                mine = stiff.flatten().cpu()
                spent = zip(before, after_whole, _spent(drift), strict=True)
                drift.nfe, drift.guide_nfe = (
                    a + torch.where(mine, c - b, b - a) for a, b, c in spent
                )
        x, twin = step.x, step.memory
        yield x, step


def _select(mask: Tensor, a: Point, b: Point) -> Point:
    return Point(torch.where(mask, a.x, b.x), torch.where(mask, a.f, b.f), b.sigma)


def _spent(drift: GuidedDrift) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(drift.nfe), torch.as_tensor(drift.guide_nfe)

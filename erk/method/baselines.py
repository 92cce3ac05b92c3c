"""Baselines of the paper: adaptive step size (Table 10) and Langevin correction (Table 11).

Adaptive step size by a stiffness threshold is a second loop over the same Step; the Langevin
predictor-corrector wraps a solver. ERK-Proj, which acts on model guidance, is in drift.py.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.drift import GuidedDrift
from erk.method.point import Drift, Point, Solver, Step, norm
from erk.method.solvers import euler, heun, heun_from
from erk.method.stiffness import stiffness


def with_langevin(
    solver: Solver, snr: float, randn_like: Callable[[Tensor], Tensor] | None
) -> Solver:
    """Return `solver` followed by a Langevin corrector at sigma_next (Song et al. 2021, Alg. 4).

    With the score s = -f / sigma and unit noise e the state moves by step s + sqrt(2 step) e, step
    = 2 (snr |e| / |s|)^2. Norms are per sample, so that no sample depends on the others of its
    batch. This costs one more evaluation per step. The corrected state has no pair, so ERK-Guid is
    not combined with it.

    Parameters
    ----------
    solver
        Any solver.
    snr
        Signal-to-noise ratio of the corrector.
    randn_like
        Draws e; None: no noise is added, and |e| is its expected size.
    """

    def langevin(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        step = solver(drift, x, sigma, sigma_next, memory)
        score = -drift(step.x, sigma_next).f / sigma_next
        noise = None if randn_like is None else randn_like(step.x)
        size = math.sqrt(x[0].numel()) if noise is None else norm(noise)
        length = 2 * (snr * size / norm(score)) ** 2
        moved = step.x + length * score
        if noise is not None:
            moved = moved + (2 * length).sqrt() * noise
        return step._replace(x=moved, twin=None)

    return langevin


def adaptive_heun(
    drift: GuidedDrift, x: Tensor, sigmas: Tensor, tau: float
) -> Iterator[tuple[Tensor, Step]]:
    """Run Heun on the levels `sigmas` [N + 1], halving an interval where stiffness exceeds `tau`.

    This is decided for each sample, by ERK-Guid's estimate at the start of the interval. Both
    variants run on the whole batch and each sample keeps one, so that no sample depends on the
    others of its batch; `drift.nfe` becomes [B], the evaluations that each sample needs (4 for a
    halved interval instead of 2). Yields as `sampler.steps` does.
    """
    require(callable(drift), "drift", "a GuidedDrift", drift)
    require(isinstance(x, Tensor), "x", "a tensor [B, ...]", x)
    require(isinstance(sigmas, Tensor) and sigmas.ndim == 1, "sigmas", "a tensor [N + 1]", sigmas)
    twin: Point | None = None
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)._replace(index=index)
            yield step.x, step
            continue
        start = drift(x, sigma)
        before = _spent(drift)
        step = heun_from(drift, start, sigma_next)._replace(index=index, twin=twin)
        after_one = _spent(drift)
        if twin is not None:
            stiff = stiffness(start, twin).rho > tau
            if stiff.any():
                middle = heun_from(drift, start, (sigma + sigma_next) / 2)
                halves = heun(drift, middle.x, (sigma + sigma_next) / 2, sigma_next)
                kept = _select(stiff, halves.memory, step.memory)
                step = step._replace(x=torch.where(stiff, halves.x, step.x), memory=kept)
                halved = stiff.flatten().cpu()
                spent = zip(before, after_one, _spent(drift), strict=True)
                drift.nfe, drift.guide_nfe = (
                    a + torch.where(halved, c - b, b - a) for a, b, c in spent
                )
        x, twin = step.x, step.memory
        yield x, step


def _select(mask: Tensor, a: Point, b: Point) -> Point:
    return Point(torch.where(mask, a.x, b.x), torch.where(mask, a.f, b.f), b.sigma)


def _spent(drift: GuidedDrift) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(drift.nfe), torch.as_tensor(drift.guide_nfe)

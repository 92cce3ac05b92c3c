"""A solver's own error: how far its samples end from the converged solution from the same noise."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..drift import Denoiser, GuidedDrift
from ..point import norm
from ..sampler import Settings, solve, steps
from ..solvers import make_solver

EVALUATIONS = 128  # of the network on a reference path; digits: 1e-4 from the exact end, against
# 0.03 of the best 15-step solver and 0.006 of 64 Heun steps (tests/test_solver_error.py)
BLOCKS = 16  # of seeds, for standard errors
WARP = 7.0  # nodes of the reference path are even in sigma^(1/7), as in EDM's schedule


class Ratio(NamedTuple):
    """A mean over another one, of the same seeds."""

    value: float
    error: float  # standard error


def refined(sigmas: Tensor, evaluations: int = EVALUATIONS) -> Tensor:
    """All of the noise levels `sigmas` [N + 1] and, between them, about `evaluations` intervals.

    float64 on the CPU; a last level of 0 stays the last, its interval whole.
    """
    levels = sigmas.double()
    places = levels[levels > 0] ** (1 / WARP)
    per_interval = -places.diff() / (places[0] - places[-1]) * evaluations
    parts = [
        torch.linspace(a.item(), b.item(), max(1, round(n.item())) + 1, dtype=torch.float64)[:-1]
        for (a, b), n in zip(pairwise(places), per_interval, strict=True)
    ]
    fine = torch.cat([*parts, places[-1:]]) ** WARP
    counts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    fine[counts] = levels[levels > 0]  # exact, whatever the powers rounded to
    return torch.cat([fine, levels[levels == 0]])


@torch.no_grad()
def reference_path(
    drift: GuidedDrift, noise: Tensor, sigmas: Tensor, evaluations: int = EVALUATIONS
) -> Tensor:
    """The solution from unit-variance noise [B, ...] at the noise levels `sigmas` [N + 1].

    Returns [N + 1, B, ...] in noise's dtype. Solved by DEIS of order 4 at about `evaluations`
    levels, the given ones among them; at sigma = 0 it is D, as in every sampler here.
    """
    fine = refined(sigmas, evaluations).to(noise.dtype)
    positive = fine[fine > 0]
    solver = make_solver("deis", sigmas=fine, ends=(positive[-1].item(), positive[0].item()))
    wanted = {level.item() for level in sigmas.to(noise.dtype)}
    kept = [noise * fine[0]]
    for (x, _), sigma in zip(steps(drift, kept[0], fine, solver), fine[1:], strict=True):
        if sigma.item() in wanted:
            kept.append(x)
    return torch.stack(kept)


def exact_drift(
    plan: Settings, model: Denoiser, labels: Tensor | None, guide_model: Denoiser | None = None
) -> GuidedDrift:
    """The drift that `plan` solves, with its model guidance and nothing else."""
    return GuidedDrift(model, labels, guide_model, plan.guidance, plan.guidance_interval)


def converged(
    plan: Settings,
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    guide_model: Denoiser | None = None,
    evaluations: int = EVALUATIONS,
) -> Tensor:
    """Where every solver would end with `plan`'s first and last noise levels, [B, ...]."""
    drift, levels = exact_drift(plan, model, labels, guide_model), ends(plan.sigmas(model))
    return reference_path(drift, noise.to(plan.dtype), levels, evaluations)[-1]


def ends(sigmas: Tensor) -> Tensor:
    """The first and the last positive noise level and the 0 behind it, if any: [2] or [3]."""
    positive = sigmas[sigmas > 0]
    return torch.cat([positive[:1], positive[-1:], sigmas[sigmas == 0]])


@torch.no_grad()
def errors(
    plan: Settings,
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None,
    exact: Tensor,
    guide_model: Denoiser | None = None,
) -> Tensor:
    """Distance of every sample from its converged solution `exact` [B, ...], [B] float64."""
    x0 = solve(plan.drift(model, labels, guide_model), noise, plan)
    return norm(x0 - exact).flatten().double()


def ratio(own: Tensor, plain: Tensor, blocks: int = BLOCKS) -> Ratio:
    """Mean own / mean plain, of [B] each from the same seeds; the error leaves out seed blocks."""
    parts = torch.stack([own, plain]).double().chunk(blocks, 1)
    sums = torch.stack([part.sum(1) for part in parts])
    without = (sums.sum(0) - sums).unbind(1)
    left = without[0] / without[1]
    n = len(sums)
    error = ((n - 1) / n * (left - left.mean()).square().sum()).sqrt()
    return Ratio((own.double().mean() / plain.double().mean()).item(), error.item())

"""A solver's own error: how far its samples end from the converged solution from the same noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from erk.method.drift import Denoiser, GuidedDrift
from erk.method.point import Point, norm
from erk.method.sampler import solve, steps
from erk.method.schedule import polynomial
from erk.method.settings import Settings
from erk.method.solvers import make_solver

EVALUATIONS = 128  # of the network on a reference path; digits: 1e-4 from the exact end, against
# 0.03 of the best 15-step solver and 0.006 of 64 Heun steps (tests/calibration/test_solver_error.py)
BLOCKS = 16  # of seeds, for standard errors
WARP = 7.0  # levels of the reference path are even in sigma^(1/7), as in EDM's schedule


class Ratio(NamedTuple):
    """A mean over another one, of the same seeds."""

    value: float
    error: float  # standard error


@torch.no_grad()
def reference_path(
    drift: GuidedDrift, noise: Tensor, sigmas: Tensor, evaluations: int = EVALUATIONS
) -> Tensor:
    """The solution from unit-variance noise [B, ...] at the noise levels `sigmas` [N + 1].

    Returns [N + 1, B, ...] in noise's dtype. DEIS of order 4 goes through `evaluations` levels of
    its own, whatever `sigmas` are; between two of them the path is the cubic of their states and
    drifts. At sigma = 0 it is D, as in every sampler here.
    """
    levels = sigmas.to(noise.dtype).double()
    waiting = levels[levels > 0].tolist()
    fine = polynomial(evaluations - 1, waiting[-1], waiting[0], WARP)
    fine = torch.cat([fine, fine.new_zeros(1)]).to(noise.dtype)
    solver = make_solver("deis", sigmas=fine, ends=(waiting[-1], waiting[0]))
    kept, before, end = [], None, noise * fine[0]
    for end, step in steps(drift, end, fine, solver):  # noqa: B007, B020
        while waiting and waiting[0] >= step.start.sigma:
            kept.append(_between(before or step.start, step.start, waiting.pop(0)))
        before = step.start
    return torch.stack([*kept, end] if levels[-1] == 0 else kept)


def _between(a: Point, b: Point, sigma: float) -> Tensor:
    """Cubic Hermite interpolation from a.sigma to b.sigma, [B, ...]."""
    h = b.sigma.item() - a.sigma.item()
    t = (sigma - a.sigma.item()) / h if h else 1.0
    x = b.x.lerp(a.x, (1 + 2 * t) * (1 - t) ** 2)
    return x + h * (t * (1 - t) ** 2 * a.f + t**2 * (t - 1) * b.f)


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

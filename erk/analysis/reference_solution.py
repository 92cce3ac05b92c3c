"""Ground truth: the probability-flow ODE solved to a tolerance, each sample at its own pace."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from erk.method.drift import Denoiser

Field = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], sigma [B]) -> dx/dsigma [B, ...]."""

# Dormand & Prince 5(4): stages, fifth-order weights, and their distance from the fourth-order ones.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Solution(NamedTuple):
    """End points and what they cost."""

    x: Tensor  # [B, ...] at sigma_min
    nfe: Tensor  # evaluations that each sample needed      [B] int64
    rejected: Tensor  # steps that were tried again smaller [B] int64


def field_of(model: Denoiser, labels: Tensor | None = None) -> Field:
    """The drift (x - D)/sigma of a denoiser at one noise level per sample, in x's dtype.

    Networks see float32, so a tolerance below 1e-6 asks for what they cannot give.
    """

    def field(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = model(x.to(torch.float32), sigma.to(torch.float32), labels).to(x.dtype)
        return (x - denoised) / _column(sigma, x)

    return field


@torch.no_grad()
def reference_solution(
    field: Field,
    x: Tensor,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Solution:
    """Solve dx/dsigma = field from x [B, ...] at sigma_max to sigma_min (Dormand-Prince 5(4)).

    Each sample chooses its own steps, so its result does not depend on its batch mates; a step is
    accepted if the rms of error / (atol + rtol |x|) over the sample is at most 1. All samples are
    evaluated until the slowest is done. Raises ArithmeticError after `max_steps` steps.
    """
    batch = len(x)
    sigma = x.new_full((batch,), sigma_max, dtype=torch.float64)
    h = sigma * 0.05
    nfe = torch.zeros(batch, dtype=torch.int64, device=x.device)
    rejected = torch.zeros_like(nfe)
    for _ in range(max_steps):
        pending = sigma > sigma_min
        if not pending.any():
            return Solution(x, nfe, rejected)
        h = torch.minimum(h, sigma - sigma_min).clamp_min(0)
        x_next, error = _step(field, x, sigma, h)
        scale = atol + rtol * torch.maximum(x.abs(), x_next.abs())
        size = (error / scale).flatten(1).square().mean(1).sqrt().to(torch.float64)
        accepted = pending & (size <= 1)
        x = torch.where(_column(accepted, x), x_next, x)
        left = sigma - h
        sigma = torch.where(accepted, torch.where(left <= sigma_min, sigma_min, left), sigma)
        nfe += pending * len(NODES)
        rejected += pending & ~accepted
        h = torch.where(pending, h * (0.9 * size.clamp_min(1e-10) ** -0.2).clamp(0.2, 5), h)
    raise ArithmeticError(
        f"no solution within {max_steps} steps: loosen rtol and atol ({rtol:g}, {atol:g})."
    )


def _step(field: Field, x: Tensor, sigma: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One step of size h [B] towards lower sigma: (answer of order 5, error estimate)."""
    slopes: list[Tensor] = []
    state, signed = x, -_column(h, x).to(x.dtype)
    for node, row in zip(NODES, STAGES, strict=True):
        state = x + signed * sum((a * k for a, k in zip(row, slopes, strict=True)), start=0.0)
        level = sigma - node * h
        slopes.append(field(state, level.clamp_min(torch.finfo(torch.float32).tiny)))
    error = signed * sum(e * k for e, k in zip(ERROR, slopes, strict=True))
    return state, error


def _column(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] to multiply [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))

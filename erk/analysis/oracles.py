"""Oracles of the paper's analysis: Jacobian, dominant eigenvector, true local and global error.

A drift here is anything that maps (x, sigma) to a Point: an exact field, or a network's
`GuidedDrift`. Networks need forward-mode derivatives; attention falls back to plain arithmetic
for them (`differentiable`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from erk.method.drift import Denoiser, GuidedDrift
from erk.method.point import Drift, Point, dot, norm
from erk.method.sampler import integrate, solve, steps
from erk.method.schedule import polynomial
from erk.method.settings import Settings
from erk.method.solvers import heun
from erk.method.stiffness import stiffness


@contextmanager
def differentiable() -> Iterator[None]:
    """Forward-mode derivatives through attention: fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def jvp(drift: Drift, x: Tensor, sigma: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(f, J v) at x [B, ...]; J = df/dx of each sample (samples do not mix)."""
    with differentiable():
        f, product = torch.func.jvp(lambda state: drift(state, sigma).f, (x,), (v,))[:2]
    return f, product


def jacobian(drift: Drift, x: Tensor, sigma: Tensor) -> Tensor:
    """J = df/dx, exact, [B, D, D] for x [B, ...] with D numbers each: D forward derivatives."""
    d = x[0].numel()
    basis = torch.eye(d, dtype=x.dtype, device=x.device)
    columns = [
        jvp(drift, x, sigma, e.reshape(1, *x.shape[1:]).expand_as(x).contiguous())[1].flatten(1)
        for e in basis
    ]
    return torch.stack(columns, dim=2)


class Dominant(NamedTuple):
    """The eigenvalue of largest magnitude and its eigenvector."""

    rho: Tensor  # |eigenvalue|                             [B]
    v: Tensor  # unit vector, towards the drift: <f, v> >= 0  [B, ...]
    history: Tensor  # |J v| at each iteration              [iterations, B]


def power_iteration(
    drift: Drift, x: Tensor, sigma: Tensor, iterations: int = 300, seed: int = 0
) -> Dominant:
    """Dominant eigenpair of the Jacobian by JVP power iteration from a seeded random start.

    Batched; 300 iterations as in the paper (Fig. 3, 7), whose `history` shows the convergence.
    Costs iterations + 1 forward derivatives.
    """
    draw = torch.Generator(x.device).manual_seed(seed)
    v = torch.randn(x.shape, generator=draw, dtype=x.dtype, device=x.device)
    v, history, f = v / norm(v), [], x
    for _ in range(iterations):
        f, product = jvp(drift, x, sigma, v)
        length = norm(product)
        history.append(length.flatten())
        v = torch.where(length > 0, product / length, v)
    v = torch.where(dot(f, v) < 0, -v, v)
    return Dominant(history[-1], v, torch.stack(history))


def exact_dominant(drift: Drift, x: Tensor, sigma: Tensor) -> Dominant:
    """The same from the exact symmetric Jacobian, for states of few dimensions."""
    j = jacobian(drift, x, sigma)
    values, vectors = torch.linalg.eigh((j + j.mT) / 2)
    place = values.abs().argmax(1)
    rows = torch.arange(len(x), device=x.device)
    v = vectors[rows, :, place].reshape(x.shape)
    v = torch.where(dot(drift(x, sigma).f, v) < 0, -v, v)
    rho = values[rows, place].abs()
    return Dominant(rho, v, rho[None])


def local_error(
    drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, substeps: int = 100
) -> Tensor:
    """Local truncation error of one Heun step from x: (100 sub-steps) - (one step), [B, ...]."""
    fine = torch.linspace(
        sigma.item(), sigma_next.item(), substeps + 1, dtype=sigma.dtype, device=sigma.device
    )
    exact = x
    for exact, _ in steps(drift, x, fine, heun):  # noqa: B007
        pass
    return exact - heun(drift, x, sigma, sigma_next).x


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos of the angle between a and b per sample, [B]; 0 where one of them is 0."""
    lengths = (norm(a) * norm(b)).flatten()
    return torch.where(lengths > 0, dot(a, b).flatten() / lengths, 0.0)


@torch.no_grad()
def global_error(
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    fine_steps: int = 512,
    guide_model: Denoiser | None = None,
    **settings: Any,
) -> Tensor:
    """Distance |x0 - converged x0| per sample, [B]: the sampler's error alone, not the model's.

    The converged solution is Heun without ERK-Guid, `fine_steps` intervals between the same first
    and last noise levels, with the same model guidance; `settings` are those of `erk.sample`.
    """
    plan = Settings(**settings)
    sigmas = plan.sigmas(model).double()
    positive = sigmas[sigmas > 0]
    levels = polynomial(fine_steps, positive[-1].item(), positive[0].item(), rho=7).tolist()
    fine = Settings(
        schedule=[*levels, 0.0] if sigmas[-1] == 0 else levels,
        guidance=plan.guidance, guidance_interval=plan.guidance_interval, dtype=plan.dtype,
    )  # fmt: skip
    ends = [solve(s.drift(model, labels, guide_model), noise, s) for s in (plan, fine)]
    return norm(ends[0] - ends[1]).flatten()


class Estimates(NamedTuple):
    """Cost-free estimates beside their oracles at one step, per sample [B] each."""

    sigma: float
    rho: Tensor  # stiffness estimate of the embedded pair
    rho_exact: Tensor  # power iteration
    cos_drift: Tensor  # |cos| of the drift difference (v of ERK-Guid) with the eigenvector
    cos_solution: Tensor  # |cos| of the solution difference x^Heun - x^Euler with it


@torch.no_grad()
def estimator_study(
    drift: GuidedDrift, noise: Tensor, settings: Settings, iterations: int = 300
) -> Iterator[Estimates]:
    """Along Heun's trajectory: how well the embedded pair tells stiffness and direction (Fig. 3).

    One item per step that has a pair; the pair lives at the start x_i of the step.
    """
    for _, step in integrate(drift, noise, settings):
        if step.twin is None:
            continue
        pair: tuple[Point, Point] = (step.start, step.twin)
        oracle = power_iteration(drift, step.start.x, step.start.sigma, iterations)
        yield Estimates(
            step.start.sigma.item(),
            stiffness(*pair).rho.flatten(),
            oracle.rho,
            cosine(pair[0].f - pair[1].f, oracle.v).abs(),
            cosine(pair[0].x - pair[1].x, oracle.v).abs(),
        )

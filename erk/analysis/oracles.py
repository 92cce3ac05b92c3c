"""Reference values for the embedded estimates: Jacobian, dominant eigenpair, local error.

A drift maps (x, sigma) to a `Point`: a closed form, or a network's `GuidedDrift`. Networks need
forward-mode derivatives; their attention then runs on the unfused kernels (`differentiable`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from erk.method.point import Drift, dot, norm
from erk.method.sampler import steps
from erk.method.solvers import heun


class Dominant(NamedTuple):
    """The eigenvalue of largest magnitude and its eigenvector."""

    rho: Tensor  # |eigenvalue|                              [B]
    v: Tensor  # unit eigenvector, oriented so that <f, v> >= 0  [B, ...]
    history: Tensor  # |J v| after each iteration               [iterations, B]


@contextmanager
def differentiable() -> Iterator[None]:
    """Select the attention kernel that supports forward-mode derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def jvp(drift: Drift, x: Tensor, sigma: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return (f, J v) at x [B, ...] with J = df/dx of each sample."""
    with differentiable():
        f, product = torch.func.jvp(lambda state: drift(state, sigma).f, (x,), (v,))[:2]
    return f, product


def jacobian(drift: Drift, x: Tensor, sigma: Tensor) -> Tensor:
    """Compute J = df/dx [B, D, D] at x [B, ...] of D numbers each, by D JVPs in one batch."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
    columns = torch.func.vmap(lambda e: jvp(drift, x, sigma, e.expand_as(x))[1])(basis)
    return columns.flatten(2).permute(1, 2, 0)


def power_iteration(
    drift: Drift, x: Tensor, sigma: Tensor, iterations: int = 300, seed: int = 0
) -> Dominant:
    """Estimate the dominant eigenpair of the Jacobian by power iteration on JVPs.

    Parameters
    ----------
    drift : callable
        Evaluates f(x; sigma).
    x : Tensor [B, ...]
        States.
    sigma : Tensor [] or [B]
        Noise levels.
    iterations : int
        JVPs to spend; the paper uses 300 (Fig. 3, 7). The cost is one more.
    seed : int
        Seed of the random start vectors.

    Returns
    -------
    Dominant
        Its `history` shows the convergence.
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
    """Compute the dominant eigenpair of the Jacobian's symmetric part, for few dimensions."""
    return dominant_of(jacobian(drift, x, sigma), drift(x, sigma).f)


def dominant_of(matrix: Tensor, f: Tensor) -> Dominant:
    """Return the dominant eigenpair of the symmetric part of matrices [B, D, D], f [B, ...]."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    largest = values.abs().argmax(1)
    rows = torch.arange(len(f), device=f.device)
    v = vectors[rows, :, largest].reshape(f.shape)
    v = torch.where(dot(f, v) < 0, -v, v)
    rho = values[rows, largest].abs()
    return Dominant(rho, v, rho[None])


def local_error(
    drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, substeps: int = 100
) -> Tensor:
    """Compute the local truncation error of one Heun step from x [B, ...].

    The exact answer is that of `substeps` Heun steps; returns exact - Heun, [B, ...].
    """
    fine = torch.linspace(
        sigma.item(), sigma_next.item(), substeps + 1, dtype=sigma.dtype, device=sigma.device
    )
    exact = x
    for exact, _ in steps(drift, x, fine, heun):  # noqa: B007
        pass
    return exact - heun(drift, x, sigma, sigma_next).x


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine between a and b per sample, [B]; 0 where one of them is 0."""
    lengths = (norm(a) * norm(b)).flatten()
    return torch.where(lengths > 0, dot(a, b).flatten() / lengths, 0.0)

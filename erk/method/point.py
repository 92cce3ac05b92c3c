"""The vocabulary of the method: what one evaluation is, and what a solver reports of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Point(NamedTuple):
    """One evaluation of the probability-flow ODE dx/dsigma = f(x; sigma)."""

    x: Tensor  # state          [B, ...]
    f: Tensor  # drift          [B, ...]   (Eq. 1)
    sigma: Tensor  # noise level    []         on the CPU, so that comparing it costs no GPU sync


class Step(NamedTuple):
    """What a solver reports of one step. It knows nothing of guidance."""

    x: Tensor  # its answer at sigma_next                      [B, ...]
    start: Point  # where the step began
    twin: Point | None = None  # the other member of the pair (Table 9); None: none yet
    h: Tensor | None = None  # signed step of the guidance (Table 9; the sign stands for beta)
    memory: Any = None  # handed back to the solver at the next step


Drift = Callable[[Tensor, Tensor], Point]
"""(x [B, ...], sigma []) -> Point: evaluates the ODE, model guidance included."""

Solver = Callable[[Drift, Tensor, Tensor, Tensor, Any], Step]
"""(drift, x, sigma, sigma_next, memory) -> Step."""

Guide = Callable[[Step], Tensor]
"""(step) -> x [B, ...]: the state to carry on with."""


def norm(a: Tensor) -> Tensor:
    """Euclidean norm per sample: [B, ...] -> [B, 1, ...]."""
    return torch.linalg.vector_norm(a, dim=tuple(range(1, a.ndim)), keepdim=True)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample: [B, ...], [B, ...] -> [B, 1, ...]."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def level_for(x: Tensor, sigma: Tensor) -> Tensor:
    """Noise levels, [] or [B], with the type and place of x [B, ...], as [1 or B, 1, ...].

    A single level on the host is filled in on the device: copying it would make the host wait
    until the device has done all that it was given before.
    """
    if sigma.ndim == 0 and sigma.device.type == "cpu" != x.device.type:
        return x.new_full([1] * x.ndim, sigma.item())
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))

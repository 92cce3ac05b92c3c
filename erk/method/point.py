"""The vocabulary of the method: one evaluation of the ODE, one step of a solver."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Point(NamedTuple):
    """One evaluation of the probability-flow ODE dx/dsigma = f(x; sigma).

    Attributes
    ----------
    x
        State, [B, ...].
    f
        Drift, [B, ...] (Eq. 1).
    sigma
        Noise level, [], on the CPU, so that comparing it costs no GPU sync.
    """

    x: Tensor
    f: Tensor
    sigma: Tensor


class Step(NamedTuple):
    """One step of a solver: its result, its start, and the pair that ERK-Guid uses.

    A solver reports what it knows; the sampling loop fills in `sigma_next` and `index`.

    Attributes
    ----------
    x
        The solver's result at sigma_next, [B, ...].
    start
        The evaluation at the beginning of the step.
    sigma_next
        Noise level of x, [].
    index
        Number of the interval, from 0.
    twin
        The second point of the pair (Table 9); None: not known yet.
    h
        Signed step size for ERK-Guid, [] (Table 9; the sign stands for beta).
    memory
        Passed to the solver at its next step.
    origin
        The state before the step where it is not start.x (UniPC), [B, ...].
    """

    x: Tensor
    start: Point
    sigma_next: Tensor | None = None
    index: int = 0  # type: ignore[assignment]
    twin: Point | None = None
    h: Tensor | None = None
    memory: Any = None
    origin: Tensor | None = None

    @property
    def length(self) -> Tensor:
        """sigma_next - sigma, [], negative."""
        if self.sigma_next is None:
            raise ValueError("this Step has no sigma_next: give Step(x, start, sigma_next, ...).")
        return self.sigma_next - self.start.sigma

    @property
    def euler(self) -> Tensor:
        """The Euler solution from the same state, x_i + (sigma_{i+1} - sigma_i) f_i, [B, ...]."""
        return self.before + self.length * self.start.f

    @property
    def before(self) -> Tensor:
        """The state before the step, [B, ...]."""
        return self.start.x if self.origin is None else self.origin


Drift = Callable[[Tensor, Tensor], Point]
"""(x [B, ...], sigma []) -> Point: evaluates the ODE, model guidance included."""

Solver = Callable[[Drift, Tensor, Tensor, Tensor, Any], Step]
"""(drift, x, sigma, sigma_next, memory) -> Step; memory is None at the first step."""

Guidance = Callable[[Step, Any], tuple[Tensor, Any]]
"""(step, memory) -> (x [B, ...], memory): the state to go on from; memory None at the first."""


NO_DOUBLE = ("mps",)
"""Types of device without float64."""


def norm(a: Tensor) -> Tensor:
    """Return the Euclidean norm per sample: [B, ...] -> [B, 1, ...]."""
    return torch.linalg.vector_norm(a, dim=tuple(range(1, a.ndim)), keepdim=True)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product per sample: [B, ...], [B, ...] -> [B, 1, ...]."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def to_double(x: Tensor) -> Tensor:
    """Return x in float64, on the CPU if its device has no float64 (Apple's MPS)."""
    return x.cpu().double() if x.device.type in NO_DOUBLE else x.double()


def level_for(x: Tensor, sigma: Tensor) -> Tensor:
    """Return noise levels [] or [B] as [1 or B, 1, ...] with the dtype and device of x [B, ...].

    A single level on the CPU is filled in on the device: a copy would make the CPU wait for all
    work queued on the device.
    """
    if sigma.ndim == 0 and sigma.device.type == "cpu" != x.device.type:
        return x.new_full([1] * x.ndim, sigma.item())
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))

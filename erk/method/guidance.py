"""Guides: what may be done to a step's answer. They know the Step and no solver."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from erk.method.point import Step, dot, norm
from erk.method.stiffness import Stiffness, stiffness


class Push(NamedTuple):
    """The correction that ERK-Guid subtracts from a solver's answer, and what it was made of."""

    estimate: Stiffness
    gate: Tensor  # rho > w_con                    [B, 1, ...] bool
    z: Tensor  # w_stiff * |h| * rho            [B, 1, ...]
    slope: Tensor  # <f, v>                         [B, 1, ...]
    push: Tensor  # h s(z) <f, v> v, before gating [B, ...]


def alpha(z: Tensor) -> Tensor:
    """(e^z - 1)/z - 1 - z/2, the weight of Heun's local error; z^2/6 for small z (Eq. 15)."""
    series = z**2 * (1 / 6 + z * (1 / 24 + z * (1 / 120 + z * (1 / 720 + z / 5040))))
    safe = torch.where(z == 0, 1.0, z)
    return torch.where(z.abs() < 0.3, series, torch.expm1(safe) / safe - 1 - z / 2)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic": torch.square,
    "abs": torch.abs,
    "alpha": alpha,
}
"""How the correction grows with z: the paper's z^2 and its ablations (Fig. 6b)."""


def unguided(step: Step) -> Tensor:
    """The solver's own answer, [B, ...]."""
    return step.x


def erk_push(step: Step, w_stiff: float, w_con: float, scale: str = "quadratic") -> Push | None:
    """The ERK-Guid correction of `step` (Eq. 19), or None while the solver has no pair yet."""
    if step.twin is None or step.h is None:
        return None
    estimate = stiffness(step.start, step.twin)
    z = w_stiff * step.h.abs() * estimate.rho  # the sign of h is the direction, not part of z
    slope = dot(step.start.f, estimate.v)
    push = step.h * SCALES[scale](z) * slope * estimate.v
    return Push(estimate, estimate.rho > w_con, z, slope, push)


def erk_guid(step: Step, w_stiff: float, w_con: float, scale: str = "quadratic") -> Tensor:
    """ERK-Guid: the solver's answer moved along the stiff direction (Eq. 17-20, Algorithm 1).

    `w_stiff` scales the correction (0: off), `w_con` is the stiffness above which a sample is
    corrected; each sample is decided on its own. Costs no network evaluation. `scale` is one of
    `SCALES`. Returns [B, ...].
    """
    made = erk_push(step, w_stiff, w_con, scale)
    if made is None:
        return step.x
    return torch.where(made.gate, step.x - made.push, step.x)


def telemetry(
    step: Step, w_stiff: float, w_con: float, scale: str = "quadratic"
) -> dict[str, Tensor]:
    """What ERK-Guid sees and does in one step, each [B]; NaN while there is no pair.

    stiffness: rho; gate: 1 where corrected; z; slope: <f, v>; dx, df: norms of the pair's
    differences; cosine: cos(f, v); push: norm of the applied correction.
    """
    batch = step.x.shape[0]
    made = erk_push(step, w_stiff, w_con, scale)
    if made is None:
        missing = torch.full((batch,), torch.nan, dtype=step.x.dtype, device=step.x.device)
        return {name: missing for name in TELEMETRY}
    rho, _, dx, df = made.estimate
    length = norm(step.start.f)
    seen = {
        "stiffness": rho,
        "gate": made.gate.to(rho.dtype),
        "z": made.z,
        "slope": made.slope,
        "dx": dx,
        "df": df,
        "cosine": torch.where(length > 0, made.slope / length, 0.0),
        "push": norm(made.push) * made.gate,
    }
    return {name: value.reshape(batch) for name, value in seen.items()}


TELEMETRY = ("stiffness", "gate", "z", "slope", "dx", "df", "cosine", "push")

"""ERK-Guid: the correction of a solver's answer along the stiff direction. Knows no solver."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.point import Guidance, Step, dot, norm
from erk.method.stiffness import Stiffness, stiffness


class Push(NamedTuple):
    """The correction that ERK-Guid subtracts from a solver's result, with its factors.

    Attributes
    ----------
    estimate
        The stiffness of the pair.
    gate
        `rho > w_con`, [B, 1, ...] bool.
    z
        `w_stiff * |h| * rho`, [B, 1, ...].
    slope
        `<f, v>`, [B, 1, ...].
    push
        `h s(z) <f, v> v`, before gating, [B, ...] (Eq. 19).
    """

    estimate: Stiffness
    gate: Tensor
    z: Tensor
    slope: Tensor
    push: Tensor


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
"""Growth s(z) of the correction with z: the paper's z^2 and its ablations (Fig. 6b)."""


def erk_push(step: Step, w_stiff: float, w_con: float, scale: str = "quadratic") -> Push | None:
    """Return the ERK-Guid correction of `step` (Eq. 19), or None where there is none.

    There is none for a step without a twin or of length 0. Raises ValueError for a twin without h,
    and for a step whose tensors differ in shape, which would broadcast.
    """
    require(isinstance(step, Step), "step", "an erk.Step", step)
    for name, weight in (("w_stiff", w_stiff), ("w_con", w_con)):
        is_weight = isinstance(weight, Tensor) or (isinstance(weight, Real) and weight >= 0)
        require(is_weight, name, "a number of at least 0", weight)
    require(scale in tuple(SCALES), "scale", " or ".join(SCALES), scale)
    if step.twin is not None and step.h is None:
        raise ValueError("this Step has a twin but no h: give h=sigma - sigma_next (Table 9).")
    if step.twin is None or step.h is None or step.sigma_next == step.start.sigma:
        return None
    estimate = stiffness(step.start, step.twin)
    is_same = step.x.shape == step.start.x.shape
    require(is_same, "x of the step", f"{[*step.start.x.shape]} as its start", step.x)
    z = w_stiff * abs(step.h) * estimate.rho  # the sign of h is the direction, not part of z
    slope = dot(step.start.f, estimate.v)
    push = step.h * SCALES[scale](z) * slope * estimate.v
    return Push(estimate, estimate.rho > w_con, z, slope, push)


def erk_guid(step: Step, w_stiff: float, w_con: float, scale: str = "quadratic") -> Tensor:
    """Correct a solver's result along the stiff direction (Eq. 17-20, Algorithm 1).

    Costs no network evaluation. A step without a pair (`twin` None) or of length 0 is not
    corrected.

    Parameters
    ----------
    step
        One step of any solver: `x` [B, ...], `start`, `twin` and `h` are read.
    w_stiff
        Strength of the correction, at least 0, which is off.
    w_con
        Stiffness, at least 0, above which a sample is corrected; it is compared for each sample.
    scale
        Growth of the correction with z, one of `SCALES`.

    Returns
    -------
    Tensor
        The corrected state, [B, ...].

    Raises
    ------
    ValueError
        For weights below 0, a twin without `h`, and tensors of different shapes.
    """
    correction = erk_push(step, w_stiff, w_con, scale)
    if correction is None:
        return step.x
    return torch.where(correction.gate, step.x - correction.push, step.x)


@dataclass(frozen=True)
class ErkGuid:
    """ERK-Guid as the guidance of a run: `erk_guid` with its weights.

    Raises ValueError at the second step if the solver reports no pair, because the guidance would
    silently be off.
    """

    w_stiff: float
    w_con: float
    scale: str = "quadratic"

    def __call__(self, step: Step, memory: Any = None) -> tuple[Tensor, Any]:
        """Return the corrected state [B, ...]; there is nothing to remember."""
        if step.twin is None and step.index > 0:
            raise ValueError(
                "this solver never gives ERK-Guid a pair (Step.twin and Step.h); "
                "give it one with twin=, or set w_stiff to 0."
            )
        return erk_guid(step, self.w_stiff, self.w_con, self.scale), memory


def unguided(step: Step, memory: Any = None) -> tuple[Tensor, Any]:
    """Return the solver's answer, [B, ...]."""
    return step.x, memory


def memoryless(rule: Callable[[Step], Tensor]) -> Guidance:
    """Return the guidance of a function of the step alone, such as a `partial` of `erk_guid`."""
    return lambda step, memory: (rule(step), memory)


TELEMETRY = ("stiffness", "gate", "z", "slope", "dx", "df", "cosine", "push")


def telemetry(
    step: Step, w_stiff: float, w_con: float, scale: str = "quadratic"
) -> dict[str, Tensor]:
    """Return the quantities of ERK-Guid in one step, each [B]; NaN while there is no pair.

    stiffness: rho; gate: 1 where corrected; z; slope: `<f, v>`; dx, df: norms of the pair's
    differences; cosine: cos(f, v); push: norm of the applied correction.
    """
    correction = erk_push(step, w_stiff, w_con, scale)
    batch = step.x.shape[0]
    if correction is None:
        missing = torch.full((batch,), torch.nan, dtype=step.x.dtype, device=step.x.device)
        return {name: missing for name in TELEMETRY}
    rho, _, dx, df = correction.estimate
    length = norm(step.start.f)
    values = {
        "stiffness": rho,
        "gate": correction.gate.to(rho.dtype),
        "z": correction.z,
        "slope": correction.slope,
        "dx": dx,
        "df": df,
        "cosine": torch.where(length > 0, correction.slope / length, 0.0),
        "push": norm(correction.push) * correction.gate,
    }
    return {name: value.reshape(batch) for name, value in values.items()}

"""Noise schedules: strictly decreasing noise levels sigma_0 > ... > sigma_N, in float64.

`steps` counts intervals. The `edm` schedule ends at 0 (its last interval is sigma_min -> 0);
the others end at sigma_min, i.e. they have diff-sampler's num_steps = steps + 1 nodes.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.coefficients import EPSILON, vp_sigma
from erk.method.fields import HIGHEST, LOWEST


def edm(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return EDM's schedule with its trailing 0, [steps + 1] (Karras et al. 2022, Eq. 5)."""
    nodes = polynomial(steps - 1, sigma_min, sigma_max, rho)
    return torch.cat([nodes, nodes.new_zeros(1)])


def polynomial(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return nodes evenly spaced in sigma^(1/rho) that end at sigma_min, [steps + 1]."""
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    nodes = (hi + _unit(steps) * (lo - hi)) ** rho
    return _with_ends(nodes, sigma_min, sigma_max)


def logsnr(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return nodes evenly spaced in ln sigma that end at sigma_min, [steps + 1]."""
    nodes = sigma_max * (sigma_min / sigma_max) ** _unit(steps)
    return _with_ends(nodes, sigma_min, sigma_max)


def time_uniform(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return nodes evenly spaced in t^(1/rho) of a VP process, down to sigma_min, [steps + 1]."""
    time = (1 + _unit(steps) * (EPSILON ** (1 / rho) - 1)) ** rho
    nodes = torch.from_numpy(vp_sigma(time.numpy(), sigma_min, sigma_max))
    return _with_ends(nodes, sigma_min, sigma_max)


def discrete(steps: int, sigma_min: float, sigma_max: float, rho: float, model: Any) -> Tensor:
    """Return nodes evenly spaced in t^(1/rho) of the network's time, [steps + 1].

    The network must have `sigma(t)` and `sigma_inv(sigma)`; ValueError otherwise.
    """
    if not (hasattr(model, "sigma") and hasattr(model, "sigma_inv")):
        raise ValueError(
            "the 'discrete' schedule needs a network with a discrete time (sigma and sigma_inv), "
            "such as a VP one; choose another schedule."
        )
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    first, last = model.sigma_inv(ends).to(torch.float64) ** (1 / rho)
    nodes = model.sigma((first + _unit(steps) * (last - first)) ** rho).to(torch.float64).cpu()
    return _with_ends(nodes, sigma_min, sigma_max)


def _unit(steps: int) -> Tensor:
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def _with_ends(nodes: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    nodes[0], nodes[-1] = sigma_max, sigma_min  # exact, whatever the powers rounded to
    return nodes


SCHEDULES: dict[str, tuple[Callable[..., Tensor], float | None, int]] = {
    "edm": (edm, 7.0, 2),
    "polynomial": (polynomial, 7.0, 1),
    "logsnr": (logsnr, None, 1),
    "time_uniform": (time_uniform, 2.0, 1),
    "discrete": (discrete, 1.0, 1),
}
"""name -> (function, default rho or None where there is none, fewest steps)."""


def check_schedule(
    schedule: str | Sequence[float] | Tensor,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float | None,
) -> None:
    """Raise ValueError, one sentence, unless these describe a schedule."""
    if not isinstance(schedule, str):
        _explicit(schedule)
        return
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule '{schedule}'; choose one of {', '.join(SCHEDULES)}.")
    _, default_rho, fewest = SCHEDULES[schedule]
    numbers = {"steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max}
    numbers |= {} if rho is None else {"rho": rho}
    for name, value in numbers.items():
        require(isinstance(value, Real | Tensor), name, "a number", value)
    if steps < fewest:
        raise ValueError(f"the '{schedule}' schedule needs at least {fewest} steps, not {steps}.")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(
            f"noise levels must satisfy 0 < sigma_min < sigma_max < inf, "
            f"not sigma_min = {sigma_min:g}, sigma_max = {sigma_max:g}."
        )
    if rho is not None and default_rho is None:
        raise ValueError(f"the '{schedule}' schedule takes no rho, but got rho = {rho:g}.")


def make_schedule(
    schedule: str | Sequence[float] | Tensor,
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float | None = None,
    model: Any = None,
) -> Tensor:
    """Return the noise levels of a named schedule or an explicit list.

    Parameters
    ----------
    schedule
        One of `SCHEDULES`, or noise levels in decreasing order.
    steps
        Intervals of a named schedule.
    sigma_min
        Lowest noise level of a named schedule, before sigma = 0.
    sigma_max
        Highest noise level of a named schedule.
    rho
        Exponent of a named schedule; None: its default.
    model
        The network, for `discrete` only.

    Returns
    -------
    Tensor
        sigma_0 > ... > sigma_N, [N + 1] float64 on the CPU.

    Raises
    ------
    ValueError
        For an unknown name, too few steps, or noise levels that do not decrease, as after rounding
        with an extreme rho.
    """
    check_schedule(schedule, steps, sigma_min, sigma_max, rho)
    if not isinstance(schedule, str):
        return _explicit(schedule)
    compute, default_rho, _ = SCHEDULES[schedule]
    more: dict[str, Any] = {} if default_rho is None else {"rho": rho or default_rho}
    if schedule == "discrete":
        more["model"] = model
    try:
        levels = compute(steps, sigma_min, sigma_max, **more)
        falls = bool(levels.isfinite().all() and (levels.diff() < 0).all())
    except OverflowError:  # Python's powers
        falls = False
    if not falls:
        advice = "take fewer steps"
        if default_rho is not None:
            advice = f"take a rho near {default_rho:g} (not {more['rho']:g}) or fewer steps"
        raise ValueError(
            f"in floating point the '{schedule}' schedule has no {steps} different steps from "
            f"{sigma_max:g} to {sigma_min:g}: {advice}."
        )
    return levels


def _explicit(levels: Sequence[float] | Tensor) -> Tensor:
    known = isinstance(levels, Sequence | Tensor | np.ndarray)
    require(known, "schedule", "a name or a list of noise levels", levels)
    sigmas = torch.as_tensor(levels, dtype=torch.float64).cpu()
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError("an explicit schedule needs at least two noise levels in one list.")
    if not (sigmas.isfinite().all() and sigmas[-1] >= 0 and (sigmas.diff() < 0).all()):
        raise ValueError("an explicit schedule must be finite, non-negative, strictly decreasing.")
    positive = sigmas[sigmas > 0]
    if not LOWEST <= positive[-1] <= positive[0] <= HIGHEST:
        raise ValueError(
            f"noise levels above 0 are {LOWEST:g} to {HIGHEST:g}, not {positive[-1]:g} to "
            f"{positive[0]:g}."
        )
    return sigmas

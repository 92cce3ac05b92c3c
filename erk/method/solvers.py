"""Solvers of dx/dsigma = f(x; sigma): one step each, pure functions that know no guidance.

A solver takes (drift, x, sigma, sigma_next, memory) and its options, and returns a `Step`. Beside
its answer it reports the pair that ERK-Guid uses: a second point whose drift is already known
(`twin`), and the signed step `h` (Table 9; the others are derived in docs/theory.md). Without an
embedded stage the twin is the previous node. The keywords `sigmas` (all noise levels of the run)
and `ends` (sigma_min, sigma_max) are filled in by `make_solver` for the solvers that have them. The
step to sigma = 0 is Euler's for every solver: the sampling loop takes it. A step of length 0 leaves
x alone.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.coefficients import (
    ADAMS_BASHFORTH,
    ipndm_v_weights,
    lagrange_integrals,
    phi,
    unipc_weights,
    vp_time,
)
from erk.method.fields import PUBLISHED_SCHEDULES
from erk.method.point import Drift, Point, Solver, Step


def euler(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any = None) -> Step:
    """Take a step of Euler's method (DDIM in sigma): order 1, 1 evaluation; D at sigma_next = 0."""
    start = drift(x, sigma)
    x_next = start.x + (sigma_next - sigma) * start.f
    return _multistep(x_next, _latest(start, memory, 1), sigma_next)


def heun(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any = None) -> Step:
    """Take a step of Heun's method (EDM's sampler): order 2, 2 evaluations.

    The twin of x_i is the Euler solution of the previous step, at the same sigma_i.
    """
    return heun_from(drift, drift(x, sigma), sigma_next)._replace(twin=memory)


def heun_from(drift: Drift, start: Point, sigma_next: Tensor) -> Step:
    """Take a Heun step from a point whose drift is known: 1 evaluation, no pair yet."""
    x, f, sigma = start
    end = drift(x + (sigma_next - sigma) * f, sigma_next)  # Eq. 3
    x_next = x + (sigma_next - sigma) * (0.5 * f + 0.5 * end.f)  # Eq. 5
    return Step(x_next, start, sigma_next, h=sigma - sigma_next, memory=end)


def dpm2(
    drift: Drift,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    memory: Any = None,
    *,
    r: float = 0.5,
    predict_x0: bool = False,
) -> Step:
    """Take a step of DPM-Solver-2S (Lu et al. 2022): order 2, 2 evaluations.

    The middle stage is the twin; `r` in (0, 1] puts it at sigma_next^r sigma^(1-r). predict_x0:
    DPM-Solver++(2S) (Lu et al. 2022b), which is the same in 1/sigma; its error, and so h, has the
    other sign.
    """
    start = drift(x, sigma)
    sigma_mid = sigma_next**r * sigma ** (1 - r)
    middle = drift(start.x + (sigma_mid - sigma) * start.f, sigma_mid)
    if predict_x0:
        m, m_mid = (_prediction(point, True, False) for point in (start, middle))
        base, c, hh = _exponential(start.x, sigma, sigma_next, True)
        x_next = base - c * hh * phi(1, hh) * (m + (m_mid - m) / (2 * r))
        return Step(x_next, start, sigma_next, twin=middle, h=sigma_next - sigma)
    slope = middle.f / (2 * r) + (1 - 1 / (2 * r)) * start.f
    x_next = start.x + (sigma_next - sigma) * slope
    return Step(x_next, start, sigma_next, twin=middle, h=sigma - sigma_next)


def ipndm(
    drift: Drift,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    memory: Any = None,
    *,
    order: int = 4,
) -> Step:
    """Take a step of iPNDM (Zhang & Chen 2023): Adams-Bashforth for equal steps, 1 evaluation."""
    points = _latest(drift(x, sigma), memory, order)
    slope = _weighted(ADAMS_BASHFORTH[min(order, len(points))], points)
    return _multistep(x + (sigma_next - sigma) * slope, points, sigma_next)


def ipndm_v(
    drift: Drift,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    memory: Any = None,
    *,
    order: int = 4,
) -> Step:
    """Take a step of iPNDM_v: Adams-Bashforth for unequal steps (as published), 1 evaluation."""
    points = _latest(drift(x, sigma), memory, order)
    weights = ipndm_v_weights(_levels(points[:order]), sigma_next.item())
    return _multistep(x + _weighted(weights, points), points, sigma_next)


def deis(
    drift: Drift,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    memory: Any = None,
    *,
    ends: tuple[float, float],
    order: int = 4,
    mode: str = "tab",
) -> Step:
    """Take a step of DEIS (Zhang & Chen 2023): exponential integrator, 1 evaluation.

    A polynomial in VP time (`mode` 'tab') or in sigma ('rhoab') extrapolates the latest drifts. In
    sigma the exponential weight of DEIS is 1, so both are integrals of Lagrange polynomials.
    """
    points = _latest(drift(x, sigma), memory, order)
    time = partial(vp_time, sigma_min=ends[0], sigma_max=ends[1]) if mode == "tab" else np.asarray
    weights = lagrange_integrals(_levels(points[:order]), sigma_next.item(), time)
    twin = points[1] if len(points) > 1 else None
    h = None if twin is None else sigma - twin.sigma  # beta = -1: the PREVIOUS step, reversed
    x_next = x + _weighted(weights, points)
    return Step(x_next, points[0], sigma_next, twin=twin, h=h, memory=points)


def dpmpp(
    drift: Drift,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    memory: Any = None,
    *,
    sigmas: Tensor,
    order: int = 3,
    predict_x0: bool = True,
    lower_order_final: bool = True,
    dynamic_thresholding: bool = False,
) -> Step:
    """Take a step of multistep DPM-Solver++ (Lu et al. 2022b): 1 evaluation, in -ln sigma.

    It extrapolates D, or with predict_x0 False the noise, i.e. the drift. Published order 3 has
    half of the second derivative's right weight: it converges at order 2.
    """
    points = _latest(drift(x, sigma), memory, order)
    if sigma_next == sigma:
        return _multistep(x, points, sigma_next)
    now = _order(points, sigma_next, sigmas, order, lower_order_final)
    m = [_prediction(point, predict_x0, dynamic_thresholding) for point in points[:now]]
    base, c, hh = _exponential(x, sigma, sigma_next, predict_x0)
    total = hh * phi(1, hh) * m[0]
    if now >= 2:
        r0 = _log_ratio(points[1].sigma, sigma) / abs(hh)
        slope = (m[0] - m[1]) / r0
    if now == 2:
        total = total + 0.5 * hh * phi(1, hh) * slope
    if now == 3:
        r1 = _log_ratio(points[2].sigma, points[1].sigma) / abs(hh)
        bend = (slope - (m[1] - m[2]) / r1) / (r0 + r1)
        total = total + hh * phi(2, hh) * (slope + r0 * bend) + hh * phi(3, hh) * bend
    return _multistep(base - c * total, points, sigma_next, _sign(now))


def unipc(
    drift: Drift,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    memory: Any = None,
    *,
    sigmas: Tensor,
    order: int = 3,
    variant: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    dynamic_thresholding: bool = False,
) -> Step:
    """Take a step of UniPC (Zhao et al. 2023): predictor and corrector, 1 evaluation.

    The drift is evaluated at the predicted state and kept for the next step, whose start is there.
    The last step only predicts. `variant`: B(h) = h ('bh1') or e^h - 1 ('bh2').
    """
    points = memory or (drift(x, sigma),)
    if sigma_next == sigma:
        return _multistep(x, points, sigma_next)._replace(origin=x)
    now = _order(points, sigma_next, sigmas, order, lower_order_final)
    m = [_prediction(point, predict_x0, dynamic_thresholding) for point in points[:now]]
    base, c, hh = _exponential(x, sigma, sigma_next, predict_x0)
    b = hh if variant == "bh1" else hh * phi(1, hh)
    ratios = [-_log_ratio(p.sigma, sigma) / abs(hh) for p in points[1:now]]
    slopes = [(m_k - m[0]) / r for m_k, r in zip(m[1:], ratios, strict=True)]
    weights = unipc_weights(ratios, hh, b) if ratios else []
    base = base - c * hh * phi(1, hh) * m[0]
    x_next = base - c * b * _sum(weights, slopes)
    if sigma_next == sigmas[sigmas > 0][-1]:
        return _multistep(x_next, points, sigma_next, _sign(now))._replace(origin=x)
    end = drift(x_next, sigma_next)
    slopes.append(_prediction(end, predict_x0, dynamic_thresholding) - m[0])
    x_next = base - c * b * _sum(unipc_weights([*ratios, 1.0], hh, b), slopes)
    step = _multistep(x_next, points, sigma_next, _sign(now))
    return step._replace(memory=_latest(end, points, order), origin=x)


def _latest(start: Point, memory: tuple[Point, ...] | None, order: int) -> tuple[Point, ...]:
    """Return the latest points, newest first: as many as the order needs, at least the twin.

    A level that is evaluated again, after a step of length 0, counts once: polynomials through
    two points of one level do not exist.
    """
    earlier = memory or ()
    if earlier and earlier[0].sigma == start.sigma:
        earlier = earlier[1:]
    return (start, *earlier)[: max(order, 2)]


def _multistep(
    x_next: Tensor, points: tuple[Point, ...], sigma_next: Tensor, sign: int = -1
) -> Step:
    """Return a multistep solver's Step: the twin is the previous node, h the signed step (= beta).

    The sign is that of the solver's error on Gaussian data (docs/theory.md): extrapolating
    the drift falls short (-1), extrapolating D by a line or more overshoots (+1).
    """
    twin = points[1] if len(points) > 1 else None
    h = sign * (points[0].sigma - sigma_next)
    return Step(x_next, points[0], sigma_next, twin=twin, h=h, memory=points)


def _order(
    points: tuple[Point, ...], sigma_next: Tensor, sigmas: Tensor, order: int, lower_at_end: bool
) -> int:
    """Return the order of this step, limited by the known points and, if asked, the steps left."""
    left = len(sigmas[(sigmas <= sigma_next) & (sigmas > 0)].unique()) if lower_at_end else order
    return min(order, len(points), left)


def _exponential(
    x: Tensor, sigma: Tensor, sigma_next: Tensor, predict_x0: bool
) -> tuple[Tensor, Tensor | float, float]:
    """Return (base, c, hh): the solution for a constant prediction m is base - c (e^hh - 1) m."""
    h = _log_ratio(sigma, sigma_next)
    return (sigma_next / sigma * x, 1.0, -h) if predict_x0 else (x, sigma_next, h)


def _sign(order: int) -> int:
    return -1 if order == 1 else 1


def _prediction(point: Point, predict_x0: bool, threshold: bool) -> Tensor:
    """Return what DPM-Solver++ and UniPC extrapolate: D, thresholded if asked, or the noise."""
    if not predict_x0:
        return point.f
    denoised = point.x - point.sigma * point.f
    return _threshold(denoised) if threshold else denoised


def _threshold(denoised: Tensor) -> Tensor:
    """Apply Imagen's dynamic thresholding (p = 0.995, at least 1) per sample, as diff-sampler."""
    rows = denoised.abs().flatten(1)  # one by one: torch's quantile refuses large batches
    size = torch.stack([row.quantile(0.995) for row in rows.float()]).to(denoised).clamp_min(1)
    size = size.reshape(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-size, size) / size


def _log_ratio(a: Tensor, b: Tensor) -> float:
    return math.log(a.item() / b.item())


def _levels(points: tuple[Point, ...]) -> list[float]:
    return [point.sigma.item() for point in points]


def _weighted(weights: Any, points: tuple[Point, ...]) -> Tensor:
    return _sum(weights, [point.f for point in points[: len(weights)]])


def _sum(weights: Any, terms: list[Tensor]) -> Any:
    return sum((w * term for w, term in zip(weights, terms, strict=True)), start=0.0)


SOLVERS: dict[str, Callable[..., Step]] = {
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "deis": deis,
    "dpmpp": dpmpp,
    "unipc": unipc,
}
ONE_STEP = ("euler", "heun", "dpm2")  # no earlier step changes their answer
BOUND = ("sigmas", "ends")  # keywords that the run fills in; no options of the user's
CHOICES = {"mode": ("tab", "rhoab"), "variant": ("bh1", "bh2")}


def is_one_step(solver: str | Solver) -> bool:
    """Return whether a solver looks at no earlier step; a function of the user's is trusted."""
    function = getattr(solver, "func", solver)  # of a functools.partial
    return all(s in ONE_STEP for s, ours in SOLVERS.items() if solver == s or function is ours)


def published_schedule(solver: str | Solver) -> str:
    """Return the name of the schedule that a solver is published with; a function's is 'edm'."""
    return PUBLISHED_SCHEDULES.get(solver, "edm") if isinstance(solver, str) else "edm"


def analytic_first(solver: Solver) -> Solver:
    """Return `solver` with an analytic first evaluation, x / sqrt(1 + sigma^2), at no cost (AFS).

    It is exact for data of unit variance; at the highest noise level all data look alike
    (Dockhorn et al. 2022).
    """

    def start(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        def first(y: Tensor, level: Tensor) -> Point:
            if level != sigma:
                return drift(y, level)
            return Point(y, y / (1 + level**2).sqrt(), level)

        step = solver(drift if memory else first, x, sigma, sigma_next, memory and memory[0])
        return step._replace(memory=(step.memory,))

    return start


def make_solver(
    name: str,
    options: dict[str, Any] | None = None,
    sigmas: Tensor | None = None,
    ends: tuple[float, float] = (0.002, 80.0),
) -> Solver:
    """Return the named solver with its options, for the noise levels of a run.

    Parameters
    ----------
    name
        One of `SOLVERS`.
    options
        Values of `default_options(name)` to change.
    sigmas
        All noise levels of the run, [N + 1], for the solvers that look ahead (dpmpp, unipc).
    ends
        (sigma_min, sigma_max), for the solvers that work in the time of a VP process (deis).

    Raises
    ------
    ValueError
        For an unknown name, an option that the solver does not take, or a value out of range.
    """
    keywords, known, options = _keywords(name), [*default_options(name)], options or {}
    require(isinstance(options, Mapping), "options", "a dictionary", options)
    for key, value in options.items():
        if key not in known:
            choice = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"the solver '{name}' has no option '{key}'; {choice}.")
        _check_option(name, key, value, keywords[key])
    filled = {k: v for k, v in {"sigmas": sigmas, "ends": ends}.items() if k in keywords}
    return partial(SOLVERS[name], **filled, **options)


def default_options(name: str) -> dict[str, Any]:
    """Return the options of the named solver and their defaults; ValueError if there is none."""
    return {key: value for key, value in _keywords(name).items() if key not in BOUND}


def _keywords(name: str) -> dict[str, Any]:
    if name not in [*SOLVERS]:
        raise ValueError(f"unknown solver '{name}'; choose one of {', '.join(SOLVERS)}.")
    return {
        key: parameter.default
        for key, parameter in inspect.signature(SOLVERS[name]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _check_option(solver: str, key: str, value: Any, default: Any) -> None:
    if key == "order":  # the default is the highest there is
        ok, expected = type(value) is int and 1 <= value <= default, f"1 to {default}"
    elif key == "r":
        ok, expected = isinstance(value, int | float) and 0 < value <= 1, "a number in (0, 1]"
    elif key in CHOICES:
        ok, expected = value in CHOICES[key], " or ".join(CHOICES[key])
    else:
        ok, expected = isinstance(value, bool), "true or false"
    require(ok, f"{key} of the solver '{solver}'", expected, value)

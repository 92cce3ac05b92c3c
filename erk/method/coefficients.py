"""Coefficients of solvers and schedules, in float64 on the CPU, from noise levels alone.

Weights of multistep solvers: integrals of Lagrange polynomials, and UniPC's moments. The time of a
variance-preserving (VP) process, in which DEIS and the `time_uniform` schedule work: sigma_min
lies at t = 1e-3 and sigma_max at t = 1.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the latest drifts, newest first, for equal steps."""

_NODES, _QUADRATURE = np.polynomial.legendre.leggauss(64)


def lagrange_integrals(
    sigmas: Sequence[float], sigma_next: float, time: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """Integrate l_j(time(sigma)) dsigma from sigmas[0] to sigma_next, for every node j.

    l_j is the Lagrange polynomial that is 1 at time(sigmas[j]) and 0 at the other nodes. Gauss-
    Legendre with 64 points: exact for time = identity, to rounding for the VP time.
    """
    middle, half = (sigmas[0] + sigma_next) / 2, (sigma_next - sigmas[0]) / 2
    values, nodes = time(middle + half * _NODES), time(np.asarray(sigmas))
    integrals = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = np.prod((values[:, None] - others) / (node - others), axis=1)
        integrals.append(float(half * (_QUADRATURE @ basis)))
    return integrals


def ipndm_v_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """Return iPNDM_v's weights as published, which all published tables use.

    They are variable-step Adams-Bashforth's up to order 2. Beyond, with h0 the step ahead and
    h1, h2, h3 those behind, the published second difference has weight h0 (1 - A B) / 2 where the
    exact one is h0 (1 - A) B / 2, the third difference has a plus for a minus (11/24 in place of
    9/24 for equal steps), and the oldest weight h1/h2 for h2/h3: third order at most for 3, second
    for 4. DEIS in mode 'rhoab' has the exact weights.
    """
    h = [sigma_next - sigmas[0], *(a - b for a, b in pairwise(sigmas))]
    if len(h) <= 2:
        return lagrange_integrals(sigmas, sigma_next, lambda sigma: sigma)
    h0, h1, h2 = h[:3]
    a = h0 / (3 * (h0 + h1))
    second = (1 - a * h0 * (h0 + h1) / (h1 * (h1 + h2))) / 2
    weights = [1 + h0 / h1 / 2 + second, -h0 / h1 / 2 - (1 + h1 / h2) * second, second * h1 / h2]
    if len(h) == 4:
        h3 = h[3]
        growth = h0 * (h0 + h1) * (h0 + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        third = ((1 - a) / 2 + (1 - h0 / (2 * (h0 + h1))) * h0 / (6 * (h0 + h1 + h2))) * growth
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        shares = (1, -1 - h1 / h2 - q, h1 / h2 + q * (1 + h2 / h3), -q * h1 / h2)
        weights = [w + third * s for w, s in zip([*weights, 0.0], shares, strict=True)]
    return [h0 * w for w in weights]


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum over j of z^j / (j + k)!, e.g. phi_1 = (e^z - 1)/z, without cancellation."""
    if abs(z) < 1:
        return math.fsum(z**j / math.factorial(j + k) for j in range(20))
    value = math.expm1(z) / z
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / z
    return value


def unipc_weights(ratios: Sequence[float], hh: float, b: float) -> list[float]:
    """Return UniPC's weights of (m_k - m_0) / r_k for the given r_k (Zhao et al. 2023, Eq. 5, 9).

    They solve sum_k w_k r_k^(i-1) = i! phi_{i+1}(hh) hh / b for i = 1 .. len(ratios), but for a
    single ratio they are 1/2 by definition, which is where B(h) makes a difference.
    """
    if len(ratios) == 1:
        return [0.5]
    powers = range(1, len(ratios) + 1)
    rows = [np.asarray(ratios) ** (i - 1) for i in powers]
    right = [hh * phi(i + 1, hh) * math.factorial(i) / b for i in powers]
    return [float(w) for w in np.linalg.solve(np.asarray(rows), np.asarray(right))]


EPSILON = 1e-3
"""Time of sigma_min."""


@lru_cache
def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Return (beta_d, beta_min) of the VP process with these ends."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / EPSILON - high) / (EPSILON - 1)
    return beta_d, high - beta_d / 2


def vp_time(sigma: ArrayLike, sigma_min: float, sigma_max: float) -> NDArray[np.float64]:
    """Return t(sigma) of the VP process, float64."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    root = np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(np.asarray(sigma, np.float64) ** 2))
    return (root - beta_min) / beta_d


def vp_sigma(time: ArrayLike, sigma_min: float, sigma_max: float) -> NDArray[np.float64]:
    """Return sigma(t) of the VP process, float64."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    t = np.asarray(time, np.float64)
    squared = np.expm1(beta_d * t**2 / 2 + beta_min * t)
    return np.sqrt(squared.clip(0))  # rounding gives -1e-17

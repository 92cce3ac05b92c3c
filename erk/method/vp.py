"""The time of a VP process whose noise level runs between two given ends.

DEIS and the `time_uniform` schedule work in it: sigma_min lies at t = 1e-3 and sigma_max at t = 1.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-3


@lru_cache
def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """(beta_d, beta_min) of the process."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / EPSILON - high) / (EPSILON - 1)
    return beta_d, high - beta_d / 2


def vp_time(sigma: ArrayLike, sigma_min: float, sigma_max: float) -> NDArray[np.float64]:
    """t(sigma), float64."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    root = np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(np.asarray(sigma, np.float64) ** 2))
    return (root - beta_min) / beta_d


def vp_sigma(time: ArrayLike, sigma_min: float, sigma_max: float) -> NDArray[np.float64]:
    """sigma(t), float64."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    t = np.asarray(time, np.float64)
    return np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))

"""Post-hoc EMA: weights averaged over training with any length, from stored averages of others.

Karras et al. 2024, Sec. 3.1, 3.2 and appendix C. A power-function average at time t (images seen)
is the mean of the weights theta over the past with the profile

    p(tau) = (g + 1) / t^(g + 1) tau^g  for 0 <= tau <= t, else 0; its integral is 1

Its length is told by its standard deviation over t, std^2 = (g + 1) / ((g + 2)^2 (g + 3)), since
E tau^k = t^k (g + 1) / (g + 1 + k) and the variance is E tau^2 - (E tau)^2. An average is linear in
its profile, so the sum of stored averages whose profile comes nearest to the wanted one, in the
mean square over tau, stands for it. The coefficients x solve A x = b with

    A_ij = <p_i, p_j>,  b_i = <p_i, p>,
    <p, q> = int_0^m p q dtau
           = (g + 1)(h + 1) / (g + h + 1)  m^(g + h + 1) / (t^(g + 1) s^(h + 1)),  m = min(t, s)

for exponents g, h and times t, s. One of t, s is m, so this is free of large powers:

    <p, q> = (g + 1)(h + 1) / (g + h + 1)  (m / t)^g (m / s)^h / max(t, s)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LARGEST_STD = 1 / math.sqrt(12)  # exponent 0: the plain mean of all weights since the beginning


class Profile(NamedTuple):
    """Which average of the weights: its relative width and when it was taken."""

    std: float  # standard deviation of the profile over `time`
    time: float  # in any unit: images seen


class Combination(NamedTuple):
    """A wanted profile as a sum of stored ones."""

    coefficients: np.ndarray  # float64 [N]
    misfit: float  # root mean square of what is left, over that of the wanted profile: 0 is exact


def exponent_of(std: float) -> float:
    """The exponent g of the profile of relative width `std`, the largest root of the cubic above.

    ValueError unless 0 < std <= 1 / sqrt(12).
    """
    if not 0 < std <= LARGEST_STD:
        raise ValueError(f"an average's std lies between 0 and {LARGEST_STD:.4f}, unlike {std:g}.")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return max(float(roots.real.max()), 0.0)


def std_of(exponent: float) -> float:
    """The relative width of the profile with that exponent."""
    g = exponent
    return math.sqrt((g + 1) / (g + 3)) / (g + 2)


def inner_product(first: Profile, second: Profile) -> float:
    """<p, q>, the integral of the product of two profiles over all times."""
    (g, t), (h, s) = ((exponent_of(p.std), p.time) for p in (first, second))
    m = min(t, s)
    overlap = (m / t) ** g * (m / s) ** h / max(t, s)
    return (g + 1) * (h + 1) / (g + h + 1) * overlap


def combine(stored: Sequence[Profile], wanted: Profile) -> Combination:
    """Coefficients of the stored averages whose sum comes nearest to the wanted one.

    Least squares in float64; of equally good ones the smallest. ValueError for no averages, or
    times that are not above 0.
    """
    if not stored:
        raise ValueError("no stored averages were given.")
    if min(p.time for p in (*stored, wanted)) <= 0:
        raise ValueError("an average is taken at a time above 0.")
    square = inner_product(wanted, wanted)
    a = np.array([[inner_product(p, q) for q in stored] for p in stored])
    b = np.array([inner_product(p, wanted) for p in stored])
    norms = np.sqrt(np.diag(a))  # unit vectors: profiles of early times are large
    y = np.linalg.lstsq(a / np.outer(norms, norms), b / norms, rcond=1e-15)[0]
    x = y / norms
    left = square - 2 * b @ x + x @ a @ x
    return Combination(x, math.sqrt(max(left, 0.0) / square))

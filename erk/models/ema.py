"""Post-hoc EMA: reconstruct a weight average of any length from stored averages of other lengths.

Karras et al. 2024, Sec. 3.1, 3.2 and appendix C. A power-function average at time t (images seen)
is the mean of the weights theta over the past with the profile

    p(tau) = (g + 1) / t^(g + 1) tau^g  for 0 <= tau <= t, else 0; its integral is 1

Its length is given by its standard deviation over t, std^2 = (g + 1) / ((g + 2)^2 (g + 3)), since
E tau^k = t^k (g + 1) / (g + 1 + k) and the variance is E tau^2 - (E tau)^2. An average is linear in
its profile, so it is approximated by the sum of stored averages whose profile is closest to the
target in least squares over tau. The coefficients x solve A x = b with

    A_ij = <p_i, p_j>,  b_i = <p_i, p>,
    <p, q> = int_0^m p q dtau
           = (g + 1)(h + 1) / (g + h + 1)  m^(g + h + 1) / (t^(g + 1) s^(h + 1)),  m = min(t, s)

for exponents g, h and times t, s. One of t, s is m, so large powers cancel:

    <p, q> = (g + 1)(h + 1) / (g + h + 1)  (m / t)^g (m / s)^h / max(t, s)

The x are then divided by their sum, so that the sum of profiles has the integral 1 of an average:
weights that never changed come back unchanged.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_STD = 1 / math.sqrt(12)  # exponent 0: the mean of all weights since the start


class Profile(NamedTuple):
    """A weight average: its relative width and its time."""

    std: float  # standard deviation of the profile over `time`
    time: float  # in any unit: images seen


class Combination(NamedTuple):
    """A target profile as a sum of stored ones."""

    coefficients: np.ndarray  # float64 [N]
    misfit: float  # relative root mean square error of the profile; 0 is exact


def exponent_of(std: float) -> float:
    """Return the exponent g of the profile of relative width `std`: the cubic's largest root.

    Raises ValueError unless 0 < std <= 1 / sqrt(12).
    """
    if not 0 < std <= MAX_STD:
        raise ValueError(f"std must be above 0 and at most {MAX_STD:.4f}, not {std:g}.")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return max(float(roots.real.max()), 0.0)


def std_of(g: float) -> float:
    """Return the relative width of the profile with exponent g."""
    return math.sqrt((g + 1) / (g + 3)) / (g + 2)


def inner_product(first: Profile, second: Profile) -> float:
    """Compute <p, q>, the integral of the product of two profiles."""
    (g, t), (h, s) = ((exponent_of(p.std), p.time) for p in (first, second))
    m = min(t, s)
    overlap = (m / t) ** g * (m / s) ** h / max(t, s)
    return (g + 1) * (h + 1) / (g + h + 1) * overlap


def combine(stored: Sequence[Profile], target: Profile) -> Combination:
    """Compute the coefficients of the stored averages whose sum approximates the target.

    Minimum-norm least squares in float64, divided by the sum of the coefficients. Raises ValueError
    if there are no averages, for times that are not positive and for a target that the averages
    cannot approximate.
    """
    if not stored:
        raise ValueError("no stored averages were given.")
    if min(p.time for p in (*stored, target)) <= 0:
        raise ValueError("times of averages must be above 0.")
    square = inner_product(target, target)
    a = np.array([[inner_product(p, q) for q in stored] for p in stored])
    b = np.array([inner_product(p, target) for p in stored])
    norms = np.sqrt(np.diag(a))  # normalized: profiles of early times are large
    y = np.linalg.lstsq(a / np.outer(norms, norms), b / norms, rcond=1e-15)[0]
    x = y / norms
    if not x.sum() > 0:
        raise ValueError(
            f"the stored averages cannot approximate std {target.std:g}: choose a width nearer to "
            "theirs."
        )
    x /= x.sum()
    residual = square - 2 * b @ x + x @ a @ x
    return Combination(x, math.sqrt(max(residual, 0.0) / square))

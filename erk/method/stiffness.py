"""Stiffness and dominant direction, estimated from two points whose drift is already known."""

from typing import NamedTuple

import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.point import Point, norm


class Stiffness(NamedTuple):
    """Estimates from one pair, per sample.

    Attributes
    ----------
    rho
        `|df| / |dx|`, the estimated absolute dominant eigenvalue of df/dx, [B, 1, ...] (Eq. 17).
    v
        `df / |df|`, the estimated dominant eigenvector, [B, ...] (Eq. 18).
    dx, df
        The norms `|dx|` and `|df|`, [B, 1, ...].
    """

    rho: Tensor
    v: Tensor
    dx: Tensor
    df: Tensor


def stiffness(a: Point, b: Point) -> Stiffness:
    """Estimate stiffness and dominant eigenvector from the pair (a, b) (Eq. 17, 18).

    No network is evaluated. Exchanging a and b only changes the sign of v, which has no effect on
    the guidance. Two equal states give rho = 0, two equal drifts v = 0, by a division by infinity:
    an additive epsilon would spoil the order of convergence at small steps. Points of different
    shapes raise ValueError: they would broadcast.
    """
    require(isinstance(a, Point), "a", "an erk.Point", a)
    require(isinstance(b, Point), "b", "an erk.Point", b)
    shape = a.x.shape
    for name, one in {"a.f": a.f, "b.x": b.x, "b.f": b.f}.items():
        require(one.shape == shape, name, f"of the shape {[*shape]} of a.x", one)
    difference = a.f - b.f
    dx, df = norm(a.x - b.x), norm(difference)
    return Stiffness(df / _or_infinity(dx), difference / _or_infinity(df), dx, df)


def _or_infinity(length: Tensor) -> Tensor:
    return torch.where(length > 0, length, torch.inf)

"""Squared distances of features: fast lower bounds from matrix products, and exact values.

|a|^2 + |b|^2 - 2 a.b is fast, but its rounding may exceed the distance of samples that are nearly
equal, and depends on the shape of the product. So products only tell which pairs need a closer
look; whatever is compared is decided by the bounds or by the exact values.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.statistics import FEW, check_finite

PAIR = 48  # bytes for each distance of a block where all pairs are close: masks and indices
CACHED = 16 * 2**20  # bytes of exact distances on a CPU: more would leave its cache
EXACT = 128  # bytes of the memory for each feature of an exact distance, which takes 32
MEMORY = {"cuda": 2 * 2**30}  # bytes: what keeps a GPU busy between two blocks
LITTLE = 64 * 2**20  # of other devices; larger blocks were not faster on a CPU
ROUNDINGS = 16  # of a bound, in units of eps, besides those of the product's sum


class Points(NamedTuple):
    """The distinct samples of each group of a set, in the order of their first copies."""

    features: Tensor  # [S, D], of all samples as given
    rows: Tensor  # int64 [N]: the sample that is the first copy
    copies: Tensor  # int64 [N]: number of equal samples in the group
    group: Tensor  # int64 [N], ascending
    point: Tensor  # int64 [S]: the point of every sample


class Block(NamedTuple):
    """Some points, around a centre."""

    where: slice  # in the order of ``Cloud.blocks``
    at: Tensor  # int64 [R]: which points
    features: Tensor  # [R, D]
    norms: Tensor  # [R], squared, less ``Cloud.slack``


class Cloud(NamedTuple):
    """Points around a centre, in the precision of the products.

    Points a and b have a squared distance from ``lower_bounds`` to that plus twice the sum of
    their slacks.
    """

    points: Points
    centre: Tensor  # [D]
    scale: float  # a power of two: squares neither overflow nor vanish
    norms: Tensor  # [N], squared
    slack: Tensor  # [N] float64

    def blocks(self, size: int, at: Tensor | None = None, first: int = 0) -> Iterator[Block]:
        """Yield the points ``at`` (None: all) from the ``first`` on, ``size`` at a time.

        All blocks share one buffer: a block's features hold until the next one is asked for.
        """
        points = self.points
        is_all = at is None and len(points.rows) == len(points.features)  # without copies
        if at is None:
            at = torch.arange(len(self.norms), device=self.norms.device)
        width = len(self.centre)
        buffer = self.norms.new_empty(min(size, len(at)), width)
        for start in range(first, len(at), size):
            chosen = at[start : start + size]
            features = buffer[: len(chosen)]
            if is_all:  # slices: gathering rows takes time
                parts = iter(points.features[start : start + len(chosen)].split(FEW))
            else:
                parts = (points.features[points.rows[some]] for some in chosen.split(FEW))
            for part, out in zip(parts, features.split(FEW), strict=True):
                torch.sub(part, self.centre, out=out).mul_(self.scale)
            norms = (self.norms[chosen].double() - self.slack[chosen]).to(features)
            yield Block(slice(start, start + len(chosen)), chosen, features, norms)


def distinct(features: Tensor, group: Tensor) -> Points:
    """Find equal rows of features [S, D] within ascending groups int64 [S]."""
    hashes = torch.cat([_hashed(rows) for rows in features.split(FEW)])
    order = hashes.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    same = (hashes[order[1:]] == hashes[order[:-1]]) & (group[order[1:]] == group[order[:-1]])
    for pairs in same.nonzero()[:, 0].split(FEW):
        equal = features[order[pairs]] == features[order[pairs + 1]]
        same[pairs] = equal.all(1)
    run = torch.cat([order.new_zeros(1), (~same).cumsum(0)])
    first = order[torch.cat([run.new_ones(1, dtype=torch.bool), ~same])]  # of each run
    rows, ranks = first.sort()
    point = torch.empty_like(order)
    point[order] = ranks.argsort()[run]
    return Points(features, rows, point.bincount(minlength=len(rows)), group[rows], point)


def each_alone(features: Tensor) -> Points:
    """Take every sample [S, D] as a point, equal ones too."""
    rows = torch.arange(len(features), device=features.device)
    return Points(features, rows, torch.ones_like(rows), torch.zeros_like(rows), rows)


def _hashed(rows: Tensor) -> Tensor:
    """Hash rows [R, D] to int64 [R]: integer sums do not depend on their order."""
    generator = torch.Generator().manual_seed(0)
    is_even = rows.shape[1] * rows.itemsize % 8 == 0
    bits = (rows + 0.0).contiguous()  # + 0.0: -0 equals 0
    bits = bits.view(torch.int64 if is_even else torch.int32)
    odd = torch.randint(-(2**62), 2**62, bits.shape[1:], generator=generator) * 2 + 1
    return (bits * odd.to(rows.device)).sum(1)


def centre_and_scale(real: Tensor, generated: Tensor) -> tuple[Tensor, float]:
    """Return the mean [D] of real features and a power of two that brings the largest to about 1.

    Both only make products precise: no result depends on them.
    """
    parts = [(rows / len(real)).sum(0, dtype=torch.float64) for rows in real.split(FEW)]
    centre = torch.stack(parts).sum(0)
    ends = [end for one in (real, generated) for end in (one.amin(0), one.amax(0))]  # [D] each
    largest = max(float((end - centre).abs().max()) for end in ends)
    if not math.isfinite(largest):
        raise ValueError("features differ by more than 1e308: remove the cause, or scale them")
    exponent, most = math.frexp(largest)[1], 126 if real.dtype == torch.float32 else 1000
    return centre.to(real.dtype), 2.0 ** max(-most, min(-exponent, most))


def cloud_around(points: Points, centre: Tensor, scale: float) -> Cloud:
    """Put a centre [D] into points; its type is that of the products.

    Slack: |b|^2 and D products summed in any order err by (D + 1) eps / 2 (|b|^2 + 2 |a||b|) at
    most (Higham 2002, 3.1), and 2 |a||b| <= |a|^2 + |b|^2; subtracting the centre, the norms and
    the last sum add a few eps. Squares below the smallest normal number are lost.
    """
    limits, dim = torch.finfo(centre.dtype), len(centre)
    norms = centre.new_zeros(len(points.rows))
    cloud = Cloud(points, centre, scale, norms, norms.double())
    for block in cloud.blocks(FEW):
        lengths = torch.linalg.vector_norm(block.features, dim=1, dtype=torch.float64)
        norms[block.where] = lengths.square().to(norms)
    check_finite(norms, "squared features")
    slack = (dim + ROUNDINGS) * limits.eps * norms.double() + dim * limits.tiny
    return cloud._replace(slack=slack)


def lower_bounds(a: Block, b: Block) -> Tensor:
    """Return lower bounds [A, B] of the squared distances; they may be negative."""
    bounds = torch.addmm(b.norms, a.features, b.features.T, alpha=-2)
    return bounds.add_(a.norms[:, None])


def exact_distances(
    a: Points, i: Tensor, b: Points, j: Tensor, scale: float, memory: int
) -> Tensor:
    """Return the squared distances float64 [P] of points i of a and j of b, int64 [P].

    From differences in float64, summed in one order whatever the shapes, so that d(a, b) is
    d(b, a), and 0 for copies alone.
    """
    if a.features.device.type == "cpu":
        memory = min(memory, CACHED)
    size = max(1, memory // (EXACT * a.features.shape[1]))
    before, after = (scale, 1.0) if a.features.dtype == torch.float64 else (1.0, scale**2)
    parts = []  # float64 holds squares of float32 without a scale
    for p, q in zip(i.split(size), j.split(size), strict=True):
        differences = a.features[a.rows[p]].double().sub_(b.features[b.rows[q]])
        if before != 1:
            differences.mul_(before)
        parts.append(_sums(differences.square_()).mul_(after))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=i.device)


def memory_of(device: torch.device) -> int:
    """Return the bytes that a search on a device takes by default, besides the features."""
    return MEMORY.get(device.type, LITTLE)


def tile_size(memory: int, dim: int, itemsize: int) -> int:
    """Return the largest t with t^2 (2 itemsize + PAIR) + 3 t dim itemsize <= memory.

    t^2 distances, the block before or a transposed copy; t rows of both sets, and those of the
    block before.
    """
    area, width = 2 * itemsize + PAIR, 3 * dim * itemsize
    return max(1, int((math.sqrt(width**2 + 4 * area * memory) - width) / (2 * area)))


def _sums(rows: Tensor) -> Tensor:
    """Sum rows [P, D] in halves, in place: the order of the terms depends on D alone."""
    width = rows.shape[1]
    while width > 1:
        half = width // 2
        rows[:, :half] += rows[:, width - half : width]
        width -= half
    return rows[:, 0].clone()

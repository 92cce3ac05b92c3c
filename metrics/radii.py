"""Radii of the balls of samples: exact distances to the k-th nearest other sample of the set."""

from typing import NamedTuple

import torch
from torch import Tensor

from metrics.exact_distances import (
    Block,
    Cloud,
    Points,
    cloud_around,
    exact_distances,
    lower_bounds,
    tile_size,
)

SPARE = 2  # points kept beyond the k nearest: rounding may exchange them
ROWS = 512  # points whose radii are computed at a time
SETTLED = 1 / 8  # of some points, below which products in float64 are given up
LEFT_OUT = -torch.inf  # radius of a point whose group is left out: nothing is in its ball


class Near(NamedTuple):
    """The points with the smallest lower bounds of the distance to n points, in each group."""

    lower: Tensor  # [n, G, K]; infinity where a group has fewer others
    other: Tensor  # int64 [n, G, K]


def squared_radii(cloud: Cloud, k: int, memory: int) -> Tensor:
    """Return float64 [1 + G, N]: of all samples, and without group 0, 1, ...; [1, N] if G is 1.

    Where float32 does not tell neighbours apart, products in float64 around one of them do; what
    remains, many equal distances, is computed one by one.
    """
    points = cloud.points
    radii, crowded = _by_products(cloud, None, k, memory)
    pending = crowded.nonzero()[:, 0]
    pending = pending[cloud.norms[pending].argsort()]  # similar points have similar norms
    size = tile_size(memory, len(cloud.centre), 8)
    while len(pending):
        some, pending = pending[:size], pending[size:]
        centre = points.features[points.rows[some[0]]].double()
        local = cloud_around(points, centre, cloud.scale)
        radii[:, some], crowded = _by_products(local, some, k, memory)
        still = some[crowded]
        if len(still) <= (1 - SETTLED) * len(some):
            pending = torch.cat([still, pending])
            continue
        for point in still:
            radii[:, point] = _one_by_one(points, point, k, cloud.scale, memory)
    return radii


def _by_products(cloud: Cloud, at: Tensor | None, k: int, memory: int) -> tuple[Tensor, Tensor]:
    """Return radii [1 + G, n] of points ``at`` (None: all), bool [n] where they are unknown."""
    near = _nearest(cloud, at, k + SPARE, memory)
    at = torch.arange(len(near.lower), device=near.lower.device) if at is None else at
    parts = [
        _settled(cloud, chosen, Near(lower, other), k, memory)
        for chosen, lower, other in zip(
            at.split(ROWS), near.lower.split(ROWS), near.other.split(ROWS), strict=True
        )
    ]
    radii, crowded = zip(*parts, strict=True)
    return torch.cat(radii, 1), torch.cat(crowded)


def _nearest(cloud: Cloud, at: Tensor | None, keep: int, memory: int) -> Near:
    """Find the ``keep`` smallest lower bounds of points ``at`` (None: all) in each group."""
    group = cloud.points.group
    shape = (len(group) if at is None else len(at), int(group[-1]) + 1, keep)
    near = Near(cloud.norms.new_full(shape, torch.inf), group.new_zeros(shape))
    size = tile_size(memory, len(cloud.centre), cloud.norms.itemsize)
    for a in cloud.blocks(size, at):
        for b in cloud.blocks(size, first=a.where.start if at is None else 0):
            bounds = lower_bounds(a, b)
            rows = ((a.at >= b.where.start) & (a.at < b.where.stop)).nonzero()[:, 0]
            bounds[rows, a.at[rows] - b.where.start] = torch.inf  # no neighbour of itself
            _keep(near, a, bounds, b, group)
            if at is None and a.where != b.where:  # symmetric: need not be computed again
                _keep(near, b, bounds.T.contiguous(), a, group)
    return near


def _keep(near: Near, rows: Block, bounds: Tensor, columns: Block, group: Tensor) -> None:
    """Merge bounds [R, C] into the smallest of every group."""
    present, sizes = group[columns.at].unique_consecutive(return_counts=True)
    start, most = columns.where.start, near.lower.shape[2]
    for g, part in zip(present.tolist(), bounds.split(sizes.tolist(), 1), strict=True):
        new = part.topk(min(most, part.shape[1]), largest=False, sorted=False)
        lower = torch.cat([near.lower[rows.where, g], new.values], 1)
        other = torch.cat([near.other[rows.where, g], new.indices + start], 1)
        best = lower.topk(most, largest=False, sorted=False)
        near.lower[rows.where, g] = best.values
        near.other[rows.where, g] = other.gather(1, best.indices)
        start += part.shape[1]


def _settled(cloud: Cloud, at: Tensor, near: Near, k: int, memory: int) -> tuple[Tensor, Tensor]:
    """Compute the distances that bounds leave open; return as `_by_products`."""
    points, groups = cloud.points, near.lower.shape[1]
    lower, other = near.lower.flatten(1).double(), near.other.flatten(1)
    upper = lower + 2 * (cloud.slack[at][:, None] + cloud.slack[other])
    group = torch.arange(groups, device=at.device).repeat_interleave(near.lower.shape[2])
    weights = points.copies[other]
    needed = k + 1 - points.copies[at]  # besides the copies of the point itself
    least = _kth(lower, weights, group, needed, groups)
    most = _kth(upper, weights, group, needed, groups)
    edge = near.lower.amax(2).double()  # from there on others may have been dropped
    is_open, crowded = torch.zeros_like(lower, dtype=torch.bool), at < 0
    for row in range(len(least)):
        is_open |= (upper >= least[row][:, None]) & (lower <= most[row][:, None])
        dropped = edge <= most[row][:, None]
        if row:
            dropped[:, row - 1] = False
            dropped[points.group[at] == row - 1] = False
        crowded |= dropped.any(1)
    crowded &= needed > 0
    i, j = (is_open & ~crowded[:, None]).nonzero().unbind(1)
    lower[i, j] = exact_distances(points, at[i], points, other[i, j], cloud.scale, memory)
    radii = _kth(lower, weights, group, needed, groups)
    return _without_left_out(radii, points.group[at]), crowded


def _one_by_one(points: Points, point: Tensor, k: int, scale: float, memory: int) -> Tensor:
    """Return the radii [1 + G] of a point from exact distances to all others."""
    every = torch.arange(len(points.rows), device=point.device)
    distances = exact_distances(points, point.expand(len(every)), points, every, scale, memory)
    distances[point] = torch.inf
    needed = (k + 1 - points.copies[point])[None]
    groups = int(points.group[-1]) + 1
    radii = _kth(distances[None], points.copies[None], points.group, needed, groups)
    return _without_left_out(radii, points.group[point][None])[:, 0]


def _kth(values: Tensor, weights: Tensor, group: Tensor, needed: Tensor, groups: int) -> Tensor:
    """Return [1 + G, n]: the smallest of values [n, C] up to which weights sum to ``needed`` [n].

    Of all, then without group 0, 1, ... of the columns (group int64 [C]); 0 if none is needed.
    """
    values, order = values.sort(1)
    weights, group = weights.gather(1, order), group[order]
    rows = []
    for left in range(-1, groups if groups > 1 else 0):
        sums = (weights * (group != left)).cumsum(1)
        column = (sums < needed[:, None]).sum(1, keepdim=True).clamp_(max=values.shape[1] - 1)
        rows.append(values.gather(1, column)[:, 0].masked_fill_(needed <= 0, 0))
    return torch.stack(rows)


def _without_left_out(radii: Tensor, group: Tensor) -> Tensor:
    """Mark the points [n] that row 1 + g of radii [1 + G, n] leaves out."""
    for g, row in enumerate(radii[1:]):
        row.masked_fill_(group == g, LEFT_OUT)
    return radii

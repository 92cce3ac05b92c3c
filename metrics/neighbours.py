"""Nearest-neighbour metrics: which samples lie in whose balls, exactly and in flat memory.

The ball of a sample reaches to the k-th nearest other sample of the same set. From who lies where
follow improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et
al. 2020), and all of them again with any one group of the generated samples left out.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.runtime.precision import NONE, tf32_only
from metrics.jackknife import group_of
from metrics.statistics import FEW, as_features, check_finite, check_same_dimension

MEMORY = {"cuda": 2 * 2**30}  # bytes: what keeps a GPU busy between two blocks
LITTLE = 64 * 2**20  # of other devices; larger blocks were not faster on a CPU
PAIR = 40  # bytes for each distance of a block where all pairs are close: masks and indices


class Membership(NamedTuple):
    """Who lies in whose ball.

    Row 0 is for all generated samples, row 1 + g for all but group g; with fewer than 2 groups
    there is only row 0. N real samples, M generated ones, G groups.
    """

    precise: Tensor  # bool [M]: this generated sample lies in a real ball
    inside: Tensor  # int64 [M]: in how many real balls it lies
    recalled: Tensor  # bool [1 + G, N]: this real sample lies in a generated ball
    covered: Tensor  # bool [1 + G, N]: a generated sample lies in this real sample's ball
    group: Tensor  # int64 [M]: the group of this generated sample


class Block(NamedTuple):
    """Some rows of a set."""

    where: slice
    features: Tensor  # [R, D], from the common centre
    norms: Tensor  # [R], squared


class Cloud(NamedTuple):
    """A set of features as given, with their squared distances from the common centre."""

    features: Tensor  # [N, D]
    centre: Tensor  # [D]
    norms: Tensor  # [N]

    def blocks(self, size: int, first: int = 0) -> Iterator[Block]:
        """Rows around the centre: distances do not change, but less of them cancels.

        All blocks share one buffer: a block's features hold until the next one is asked for.
        """
        buffer = self.features.new_empty(min(size, len(self.features)), self.features.shape[1])
        for start in range(first, len(self.features), size):
            where = slice(start, min(start + size, len(self.features)))
            rows = buffer[: where.stop - start]
            torch.sub(self.features[where], self.centre, out=rows)
            yield Block(where, rows, self.norms[where])


def precision_recall(
    *, real: Any, generated: Any, k: int = 3, strict: bool = False, memory: int | None = None
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features [N, D] and [M, D].

    Precision is the share of generated samples inside a real ball, recall the share of real
    samples inside a generated ball. Arguments and errors: see ``membership``.
    """
    result = membership(real=real, generated=generated, k=k, strict=strict, memory=memory)
    return result.precise.double().mean().item(), result.recalled[0].double().mean().item()


def density_coverage(
    *, real: Any, generated: Any, k: int = 5, strict: bool = True, memory: int | None = None
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020) of features [N, D] and [M, D].

    Density is the mean number of real balls around a generated sample, over k; coverage the
    share of real balls that hold a generated sample. Arguments and errors: see ``membership``.
    """
    result = membership(real=real, generated=generated, k=k, strict=strict, memory=memory)
    return result.inside.double().mean().item() / k, result.covered[0].double().mean().item()


@torch.no_grad()
def membership(
    *,
    real: Any,
    generated: Any,
    k: int = 3,
    strict: bool = False,
    groups: int = 1,
    memory: int | None = None,
) -> Membership:
    """Which samples of real [N, D] and generated [M, D] features lie in balls of the other set.

    A sample at distance d lies in a ball of radius r if d <= r (Kynkäänniemi et al.; torch-
    fidelity), or with ``strict`` if d < r (Naeem et al.; dgm-eval). ``groups`` > 1 also leaves
    out each of that many groups of generated samples (``jackknife.group_of``), radii included.
    Exact in the features' precision, float32 or float64; squared distances that are rounding
    error (copies of one image) count as 0. Works in about ``memory`` bytes at most besides the
    features and a few numbers per sample; None: 64 MiB, on CUDA 2 GiB. Tensors are returned on
    the device of ``real``.

    Raises ValueError for NaN or infinity, different D, or too few samples: a ball needs k other
    samples of its set, also when a group is left out.
    """
    real, generated, group = _checked(real, generated, k, groups)
    memory = memory or MEMORY.get(real.device.type, LITTLE)
    tile = _tile_size(memory, real.shape[1], real.dtype.itemsize)
    with tf32_only(NONE):
        centre = real.mean(0)
        real, generated = _cloud(real, centre, "real"), _cloud(generated, centre, "generated")
        real_radii = _radii(_nearest(real, torch.zeros_like(real.norms).long(), k, tile))
        radii = _radii_without(_nearest(generated, group, k, tile), group)
        return _cross(real, generated, real_radii, radii, group, strict, tile)


def _cross(
    real: Cloud,
    generated: Cloud,
    real_radii: Tensor,
    radii: Tensor,
    group: Tensor,
    strict: bool,
    tile: int,
) -> Membership:
    """Compare distances [M, N] with squared radii [N] and [1 + G, M], block by block.

    Few pairs lie within any radius; only those are looked at one by one.
    """
    inside = torch.zeros_like(group)
    covering = real.norms.new_zeros(int(group[-1]) + 1, len(real.norms), dtype=torch.bool)
    recalled = real.norms.new_zeros(len(radii), len(real.norms), dtype=torch.bool)
    rounding = _rounding(generated)
    reach = torch.maximum(radii.amax(0), rounding)
    for g in generated.blocks(tile):
        for r in real.blocks(tile):
            for distances, i, j in _close_pairs(g, r, reach, real_radii):
                distances[distances <= rounding[i]] = 0
                within = _within(distances, real_radii[j], strict)
                inside.index_add_(0, i, within.long())
                covering[group[i[within]], j[within]] = True
                for row, radius in zip(recalled, radii, strict=True):
                    row[j[_within(distances, radius[i], strict)]] = True
    return Membership(inside > 0, inside, recalled, _any_without(covering), group)


def _close_pairs(
    a: Block, b: Block, reach_a: Tensor, reach_b: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Squared distances up to either's reach, with the rows of a and b, some pairs at a time."""
    distances = _squared_distances(a, b)
    close = distances <= reach_a[a.where, None]
    close |= distances <= reach_b[b.where]
    for pairs in close.nonzero().split(distances.numel() // 8 + 1):
        i, j = pairs.unbind(1)
        yield distances[i, j], i + a.where.start, j + b.where.start


def _within(distances: Tensor, radii: Tensor, strict: bool) -> Tensor:
    return distances < radii if strict else distances <= radii


def _any_without(flags: Tensor) -> Tensor:
    """Flags per group [G, N] -> [1 + G, N]: in any group; in any but group 0, 1, ... ."""
    count = flags.sum(0, keepdim=True)
    return (torch.cat([count, count - flags.long()]) if len(flags) > 1 else count) > 0


def _radii(nearest: Tensor) -> Tensor:
    """Squared radii [N] from the k nearest of each group [N, G, k]."""
    return nearest.flatten(1).topk(nearest.shape[2], largest=False).values.amax(1)


def _radii_without(nearest: Tensor, group: Tensor) -> Tensor:
    """Squared radii [1 + G, N] of all samples and without group 0, 1, ...; [1, N] if G is 1.

    Samples that are left out have no ball: radius -1.
    """
    rows = [_radii(nearest)]
    for g in range(nearest.shape[1] if nearest.shape[1] > 1 else 0):
        others = torch.cat([nearest[:, :g], nearest[:, g + 1 :]], 1)
        rows.append(_radii(others).masked_fill_(group == g, -1))
    return torch.stack(rows)


def _nearest(cloud: Cloud, group: Tensor, k: int, tile: int) -> Tensor:
    """Squared distances [N, G, k] from every sample to its k nearest others in each group."""
    nearest = cloud.norms.new_full((len(group), int(group[-1]) + 1, k), torch.inf)
    for a in cloud.blocks(tile):
        for b in cloud.blocks(tile, first=a.where.start):
            distances = _squared_distances(a, b)
            if a.where == b.where:
                distances.fill_diagonal_(torch.inf)  # a sample is no neighbour of itself
            _keep_nearest(nearest[a.where], distances, group[b.where])
            if a.where != b.where:  # symmetric: the mirror image need not be computed
                _keep_nearest(nearest[b.where], distances.T.contiguous(), group[a.where])
    return nearest.masked_fill_(nearest <= _rounding(cloud)[:, None, None], 0)


def _keep_nearest(nearest: Tensor, distances: Tensor, group: Tensor) -> None:
    """Merge distances [R, C] to samples of groups [C] into the k nearest per group [R, G, k]."""
    k = nearest.shape[2]
    present, sizes = group.unique_consecutive(return_counts=True)
    for g, part in zip(present.tolist(), distances.split(sizes.tolist(), 1), strict=True):
        new = part.topk(min(k, part.shape[1]), largest=False, sorted=False).values
        both = torch.cat([nearest[:, g], new], 1)
        nearest[:, g] = both.topk(k, largest=False, sorted=False).values


def _squared_distances(a: Block, b: Block) -> Tensor:
    """Squared Euclidean distances [A, B], with the rounding error of |a|^2 + |b|^2 - 2 a.b."""
    distances = torch.addmm(b.norms, a.features, b.features.T, alpha=-2)
    return distances.add_(a.norms[:, None])


def _rounding(cloud: Cloud) -> Tensor:
    """Squared distance [N] below which a neighbour of each sample may be a copy of it."""
    dim = cloud.features.shape[1]
    return 2 * torch.finfo(cloud.norms.dtype).eps * dim**0.5 * cloud.norms


def _cloud(features: Tensor, centre: Tensor, name: str) -> Cloud:
    cloud = Cloud(features, centre, features.new_empty(len(features)))
    for block in cloud.blocks(FEW):
        torch.sum(block.features.square_(), 1, out=block.norms)
    check_finite(cloud.norms, f"squared {name} features")
    return cloud


def _tile_size(memory: int, dim: int, itemsize: int) -> int:
    """Largest t with t^2 (2 itemsize + PAIR) + 3 t dim itemsize <= memory: t^2 distances, the
    block before or a transposed copy; t rows of both sets, and those of the block before."""
    area, width = 2 * itemsize + PAIR, 3 * dim * itemsize
    return max(1, int((math.sqrt(width**2 + 4 * area * memory) - width) / (2 * area)))


def _checked(real: Any, generated: Any, k: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of one dtype on one device, and the group int64 [M] of every generated sample."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    real = as_features(real, "real", k + 1)
    generated = as_features(generated, "generated", k + 1)
    check_same_dimension(real, generated)
    group = group_of(len(generated), groups).to(real.device)
    left = len(group) - int(group.bincount().max())
    if groups > 1 and left <= k:
        raise ValueError(
            f"without one of {groups} groups, {left} generated samples are left, but k = {k} "
            f"needs {k + 1}: use fewer groups or more samples"
        )
    dtype = torch.promote_types(real.dtype, generated.dtype)
    return real.to(dtype), generated.to(real.device, dtype), group

"""Nearest-neighbour metrics: which samples lie in whose balls, exactly and in flat memory.

The ball of a sample reaches to the k-th nearest other sample of the same set. From who lies where
follow improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et
al. 2020), and all of them again with any one group of the generated samples left out.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.runtime.precision import NONE, tf32_only
from metrics.exact_distances import (
    Cloud,
    centre_and_scale,
    cloud_around,
    distinct,
    exact_distances,
    lower_bounds,
    memory_of,
    tile_size,
)
from metrics.jackknife import group_of
from metrics.radii import squared_radii
from metrics.statistics import as_features, check_same_dimension, whole_number

CROWD = 32  # undecided pairs of a point, above which products in float64 are tried


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


def precision_recall(
    *, real: Any, generated: Any, k: int = 3, strict: bool = False, memory: int | None = None
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features [N, D] and [M, D].

    A ball reaches from a sample to its k-th neighbour in its set. Precision is the share of
    generated samples inside a ball of a real one, recall the share of real samples inside a ball of
    a generated one. Arguments and errors: see ``membership``.
    """
    result = membership(real=real, generated=generated, k=k, strict=strict, memory=memory)
    return result.precise.double().mean().item(), result.recalled[0].double().mean().item()


def density_coverage(
    *, real: Any, generated: Any, k: int = 5, strict: bool = True, memory: int | None = None
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020) of features [N, D] and [M, D].

    Density is the mean number of real balls that contain a generated sample, divided by k; coverage
    is the share of real balls that contain a generated sample. Arguments and errors: see
    ``membership``.
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
    groups: int | Tensor = 1,
    memory: int | None = None,
) -> Membership:
    """Which samples of real [N, D] and generated [M, D] features lie in balls of the other set.

    A sample at distance d lies in a ball of radius r if d <= r (Kynkäänniemi et al.; torch-
    fidelity), or with ``strict`` if d < r (Naeem et al.; dgm-eval). ``groups`` > 1 also leaves
    out each of that many groups of generated samples (``jackknife.group_of``, or the ascending
    groups int64 [M]), radii included.
    Distances are those of the given numbers in float64, whatever the memory: copies are at 0, and
    equal sets have equal radii. Works in about ``memory`` bytes at most besides the features and a
    few numbers per sample; None: 64 MiB, on CUDA 2 GiB. Tensors are returned on the device of
    ``real``, or on the CPU where it has no float64 (Apple's GPU).

    Raises ValueError for NaN or infinity, different D, or too few samples: a ball needs k other
    samples of its set, also when a group is left out.
    """
    real, generated, group = _checked(real, generated, k, groups)
    least = None if memory is None else whole_number(memory, "memory", least=1)
    memory = least or memory_of(real.device)
    with tf32_only(NONE):
        centre, scale = centre_and_scale(real, generated)
        a = cloud_around(distinct(generated, group), centre, scale)
        b = cloud_around(distinct(real, group.new_zeros(len(real))), centre, scale)
        members = Members.empty(a, b, k, strict, memory)
        members.compare_all(a, b)
    point_a, point_b = a.points.point, b.points.point
    inside, covered = members.inside[point_a], _any_without(members.covering)
    return Membership(inside > 0, inside, members.recalled[:, point_b], covered[:, point_b], group)


class Members(NamedTuple):
    """Which points of M generated ones and N real ones are in balls of the other set, so far."""

    inside: Tensor  # int64 [M]: in the balls of how many real samples
    covering: Tensor  # bool [G, N]: a generated point of the group is in this real ball
    recalled: Tensor  # bool [1 + G, N]: this real point is in a generated ball
    radii: Tensor  # float64 [1 + G, M], squared
    real_radii: Tensor  # float64 [N], squared
    strict: bool
    memory: int

    @classmethod
    def empty(cls, a: Cloud, b: Cloud, k: int, strict: bool, memory: int) -> "Members":
        """Compute the balls of generated points a and real points b; nobody is in them yet."""
        radii, real_radii = squared_radii(a, k, memory), squared_radii(b, k, memory)[0]
        flags = torch.zeros(len(radii), len(real_radii), dtype=torch.bool, device=radii.device)
        covering = flags[1:].clone() if len(radii) > 1 else flags.clone()
        inside = torch.zeros_like(a.points.copies)
        return cls(inside, covering, flags, radii, real_radii, strict, memory)

    def compare_all(self, a: Cloud, b: Cloud) -> None:
        """Compare the points of a and b: where float32 leaves much open, in float64."""
        pending = self.compare(a, b, None, CROWD).nonzero()[:, 0]
        pending = pending[a.norms[pending].argsort()]  # similar points have similar norms
        size = tile_size(self.memory, len(a.centre), 8)
        for start in range(0, len(pending), size):
            some = pending[start : start + size]
            centre = a.points.features[a.points.rows[some[0]]].double()
            self.inside[some] = 0
            local = [cloud_around(one.points, centre, one.scale) for one in (a, b)]
            self.compare(local[0], local[1], some)

    def compare(
        self, a: Cloud, b: Cloud, at: Tensor | None = None, limit: int | None = None
    ) -> Tensor:
        """Compare points ``at`` of a (None: all) with those of b, block by block.

        Few pairs lie within any radius; only those are looked at one by one. Returns bool [M]:
        points of a that have more than ``limit`` undecided pairs in a block and are incomplete.
        """
        size = tile_size(self.memory, len(a.centre), a.norms.itemsize)
        reach_a = _rounded_up(self.radii.amax(0), a.norms)
        reach_b = _rounded_up(self.real_radii, a.norms)
        crowded = torch.zeros_like(self.inside, dtype=torch.bool)
        for p in a.blocks(size, at):
            for q in b.blocks(size):
                lower = lower_bounds(p, q)
                close = lower <= reach_a[p.at, None]
                close |= lower <= reach_b[q.at]
                for pairs in close.nonzero().split(lower.numel() // 8 + 1):
                    i, j = pairs.unbind(1)
                    self._include(a, b, p.at[i], q.at[j], lower[i, j].double(), crowded, limit)
        return crowded

    def _include(
        self,
        a: Cloud,
        b: Cloud,
        i: Tensor,
        j: Tensor,
        lower: Tensor,
        crowded: Tensor,
        limit: int | None,
    ) -> None:
        """Enter pairs (i, j) with lower bounds [P]; compute the distances that these leave open."""
        slack = a.slack[i] + b.slack[j]
        distances = lower.add_(slack)
        is_open = (distances - self.real_radii[j]).abs() <= slack
        for radius in self.radii:
            is_open |= (distances - radius[i]).abs() <= slack
        if limit is not None:
            crowded |= i[is_open].bincount(minlength=len(crowded)) > limit
            kept = ~(is_open & crowded[i])
            i, j, distances, is_open = i[kept], j[kept], distances[kept], is_open[kept]
        distances[is_open] = exact_distances(
            a.points, i[is_open], b.points, j[is_open], a.scale, self.memory
        )
        within = self._within(distances, self.real_radii[j])
        self.inside.index_add_(0, i, within * b.points.copies[j])
        self.covering[a.points.group[i[within]], j[within]] = True
        for row, radius in zip(self.recalled, self.radii, strict=True):
            row[j[self._within(distances, radius[i])]] = True

    def _within(self, distances: Tensor, radii: Tensor) -> Tensor:
        return distances < radii if self.strict else distances <= radii


def _rounded_up(values: Tensor, like: Tensor) -> Tensor:
    """Convert float64 to another type; no value becomes smaller."""
    return torch.nextafter(values.to(like), like.new_full((), torch.inf))


def _any_without(flags: Tensor) -> Tensor:
    """Flags per group [G, N] -> [1 + G, N]: in any group; in any but group 0, 1, ... ."""
    count = flags.sum(0, keepdim=True)
    return (torch.cat([count, count - flags.long()]) if len(flags) > 1 else count) > 0


def _checked(
    real: Any, generated: Any, k: int, groups: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of one dtype on one device, and the group int64 [M] of every generated sample."""
    k = whole_number(k, "k", least=1)
    real = as_features(real, "real", k + 1)
    real = real.cpu() if real.device.type == "mps" else real  # which has no float64
    generated = as_features(generated, "generated", k + 1)
    check_same_dimension(real, generated)
    group = groups if isinstance(groups, Tensor) else group_of(len(generated), groups)
    sizes = group.bincount()
    left = len(group) - int(sizes.max())
    if len(sizes) > 1 and left <= k:
        raise ValueError(
            f"without one of {len(sizes)} groups, {left} generated samples are left, but k = {k} "
            f"needs {k + 1}: use fewer groups or more samples"
        )
    dtype = torch.promote_types(real.dtype, generated.dtype)
    return real.to(dtype), generated.to(real.device, dtype), group.to(real.device)

"""The training images nearest to generated ones, in pixels or in an extractor's features."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.runtime.distributed import World
from erk.runtime.precision import NONE, tf32_only
from metrics.chunks import Reading, source_chunks
from metrics.exact_distances import (
    centre_and_scale,
    cloud_around,
    each_alone,
    exact_distances,
    lower_bounds,
    memory_of,
    tile_size,
)
from metrics.extractors import Outputs
from metrics.features import ExtractionPlan, image_chunks, store_features
from metrics.images import ImageSource
from metrics.statistics import whole_number
from metrics.store import default_folder, load

COPIED = 1 / 3  # of the distance to the second nearest, see `Nearest.is_copy`


class Pixels(NamedTuple):
    """Pixels as features: an Extractor whose distances are in grey levels of 255."""

    name: str = "pixels"
    sha256: str = "none"
    precision: str = "fp32"

    def __call__(self, images: Tensor) -> Outputs:
        """uint8 [B, C, H, W] -> float32 [B, C H W]."""
        return Outputs(images.flatten(1).to(torch.float32))


class Nearest(NamedTuple):
    """The k nearest training images of M generated ones, nearest first."""

    distances: Tensor  # float64 [M, k]
    indices: Tensor  # int64 [M, k], in the training set

    @property
    def ratios(self) -> Tensor:
        """Return the distance of the nearest over that of the second nearest, [M]; 1 for 0 / 0."""
        first, second = self.distances[:, 0], self.distances[:, 1]
        return torch.where(second > 0, first / second.clamp_min(1e-30), 1.0)

    @property
    def is_copy(self) -> Tensor:
        """Return which images count as copied, bool [M].

        The nearest is less than a third as far as the second nearest (Yoon et al. 2023, "Diffusion
        Probabilistic Models Generalize when They Fail to Memorize").
        """
        return self.ratios < COPIED


def feature_blocks(
    source: ImageSource, extractor: Any, device: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first image, features [B, D]) of a set, block by block.

    The features of networks are cached, so an interrupted run resumes; pixels are read again.
    """
    folder, outputs = default_folder(), {extractor.name: ("features",)}
    plan = ExtractionPlan({extractor.name: extractor}, outputs, folder, device=device)
    if isinstance(extractor, Pixels):
        for chunk in source_chunks(source, Reading())(0, 1):
            yield chunk.start, extractor(chunk.read().images).features
        return
    world, title = World(0, 1, torch.device(device)), f"Reading {source.path.name}"
    chunks = image_chunks(source, plan)(0, 1)
    for chunk in store_features(plan, chunks, world, len(source.names), title):
        yield chunk.start, load(folder, extractor, chunk.key)["features"]


@torch.no_grad()
def nearest(queries: Tensor, blocks: Iterator[tuple[int, Tensor]], k: int) -> Nearest:
    """Return the k nearest of all blocks to each query [M, D]; memory holds one block at a time.

    Matrix products only exclude pairs that are farther than the k-th for certain; the distances of
    the others are those of the given numbers in float64. Of equal distances the first image counts.
    Raises ValueError if the features have different widths, or k is no number from 1 on.
    """
    k = whole_number(k, "k", least=1)
    queries = queries.cpu() if queries.device.type == "mps" else queries  # which has no float64
    squares = queries.new_full((len(queries), k), torch.inf, dtype=torch.float64)
    best = Nearest(squares, torch.zeros_like(squares, dtype=torch.long))
    for start, block in blocks:
        if block.shape[1] != queries.shape[1]:
            raise ValueError(
                f"generated images have {queries.shape[1]} values and training images "
                f"{block.shape[1]}: compare images of one size, or choose another --space"
            )
        with tf32_only(NONE):
            best = _with_block(best, queries, block.to(queries), start)
    return Nearest(best.distances.sqrt().cpu(), best.indices.cpu())


def _with_block(best: Nearest, queries: Tensor, block: Tensor, start: int) -> Nearest:
    """Add the nearer ones of a block to the nearest so far, all with squared distances."""
    centre, scale = centre_and_scale(queries, block)
    a, b = (cloud_around(each_alone(one), centre, scale) for one in (queries, block))
    memory, k = memory_of(queries.device), best.distances.shape[1]
    size = tile_size(memory, len(centre), queries.itemsize)
    for p in a.blocks(size):
        for q in b.blocks(size):
            lower = lower_bounds(p, q).double()
            limit = best.distances[p.at, -1] * scale**2
            if k <= len(q.at):  # at least k of this block are not beyond the k-th upper bound
                upper = lower + 2 * (a.slack[p.at, None] + b.slack[q.at])
                limit = limit.minimum(upper.topk(k, largest=False).values.amax(1))
            i, j = (lower <= limit[:, None]).nonzero().unbind(1)
            exact = exact_distances(a.points, p.at[i], b.points, q.at[j], scale, memory)
            best = _merged(best, p.at[i], exact / scale**2, q.at[j] + start)
    return best


def _merged(best: Nearest, query: Tensor, squares: Tensor, index: Tensor) -> Nearest:
    """Keep the k smallest of the squared distances so far and new ones [P] of some queries."""
    count, k = best.distances.shape
    every = torch.arange(count, device=query.device)
    query = torch.cat([every.repeat_interleave(k), query])
    squares = torch.cat([best.distances.flatten(), squares])
    index = torch.cat([best.indices.flatten(), index])
    order = squares.argsort(stable=True)
    order = order[query[order].argsort(stable=True)]
    counts = query.bincount()
    kept = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k, device=query.device)]
    return Nearest(squares[kept], index[kept])

"""The training images nearest to generated ones, in pixels or in an extractor's features."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.runtime.distributed import World
from metrics.chunks import Reading, source_chunks
from metrics.extractors import Outputs
from metrics.features import ExtractionPlan, image_chunks, store_features
from metrics.images import ImageSource
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

    distances: Tensor  # [M, k]
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

    Matrix products choose the candidates of a block; their distances are then computed exactly, so
    that a copy has distance 0. Raises ValueError if the features have different widths.
    """
    best = queries.new_full((len(queries), k), torch.inf)
    indices = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    for start, block in blocks:
        block = block.to(queries)
        if block.shape[1] != queries.shape[1]:
            raise ValueError(
                f"generated images have {queries.shape[1]} values and training images "
                f"{block.shape[1]}: compare images of one size, or choose another --space"
            )
        near = torch.cdist(queries, block).topk(min(k, len(block)), largest=False).indices
        exact = [torch.linalg.vector_norm(queries - block[i], dim=1) for i in near.unbind(1)]
        both = torch.cat([best, torch.stack(exact, 1)], 1)
        candidates = torch.cat([indices, near + start], 1)
        best, order = both.sort(dim=1, stable=True)
        best, indices = best[:, :k], candidates.gather(1, order)[:, :k]
    return Nearest(best.cpu(), indices.cpu())

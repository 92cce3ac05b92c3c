"""A job's images in chunks that go straight to an evaluator, without a file on disk."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.generation.archives import batch_sizes
from erk.generation.job import Job
from erk.generation.sampling import generate

METADATA = {"nfe": ("nfe", torch.float64), "guide_nfe": ("guide_nfe", torch.float64),
            "batch": ("size", torch.int64)}  # fmt: skip
"""Metadata kept per image: name -> (field of its ImageBatch, dtype)."""


class ImageChunk(NamedTuple):
    """One batch of images, sampled when read; the fields are those that the evaluator expects."""

    start: int  # index of its first seed in the list of seeds
    key: str  # names everything that the images depend on
    size: int
    read: Callable[[], tuple[Tensor, Tensor, dict[str, Tensor]]]
    """-> images uint8 [n, C, H, W], their indices in the chunk [n], metadata [n] by name"""


def image_chunks(job: Job) -> Callable[[int, int], Iterator[ImageChunk]]:
    """Return a function (rank, size) -> every size-th batch of the job's seeds.

    Batches and images are those of `erk generate` at the same --batch.
    """
    identity = job.key()

    def share(rank: int, size: int) -> Iterator[ImageChunk]:
        for start in range(rank * job.batch, len(job.seeds), size * job.batch):
            seeds = list(job.seeds[start : start + job.batch])
            key = hashlib.sha256(f"{identity} {seeds}".encode()).hexdigest()
            yield ImageChunk(start, key, len(seeds), functools.partial(_read, job, seeds))

    return share


def summarize(metadata: Mapping[str, Tensor], job: Job) -> dict[str, Any]:
    """Return mean NFE, and batch sizes if memory did not suffice for the job's everywhere."""
    nfe = {name: metadata[name].mean().item() for name in ("nfe", "guide_nfe")}
    sizes = Counter(metadata["batch"].tolist())
    return nfe | batch_sizes(sizes, job.batch, str(job.identity.get("precision")))


def _read(job: Job, seeds: list[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    batches = list(generate(job, seeds))  # several if memory did not suffice for one
    sizes = torch.tensor([len(batch.seeds) for batch in batches])
    metadata = {
        name: torch.tensor([getattr(batch, field) for batch in batches], dtype=dtype)
        .repeat_interleave(sizes)
        for name, (field, dtype) in METADATA.items()
    }  # fmt: skip
    classes = [batch.classes for batch in batches if batch.classes is not None]
    if classes:
        metadata["labels"] = torch.cat(classes)
    return torch.cat([batch.wait() for batch in batches]), torch.arange(len(seeds)), metadata

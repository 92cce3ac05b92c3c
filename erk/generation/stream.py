"""A job's pictures in pieces that go straight to whoever measures them: no image on a disk."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.generation.job import Job
from erk.generation.packing import told_batches
from erk.generation.record import plain
from erk.generation.sampling import Batch, generate
from erk.io.download import sha256_of

CODE = Path(__file__).parents[1]  # features of other code's pictures must not be taken for ours
STORAGE = ("format", "subdirs")  # of an identity: they say how files lie, and there are none
FACTS = (
    ("nfe", "nfe", torch.float64), ("guide_nfe", "guide_nfe", torch.float64),
    ("batch", "size", torch.int64),
)  # fmt: skip
"""What is kept of every picture: name, field of its Batch, type."""


class Piece(NamedTuple):
    """One batch of pictures, not yet made; the fields are those that metrics' collect wants."""

    start: int  # place of its first seed in the list of seeds
    key: str  # names all that the pictures depend on
    size: int
    read: Callable[[], tuple[Tensor, Tensor, dict[str, Tensor]]]
    """-> images uint8 [n, C, H, W], their places in the piece [n], facts: nfe, batch, labels"""


def pieces(job: Job) -> Callable[[int, int], Iterator[Piece]]:
    """(rank, size) -> every size-th batch of the job's seeds.

    The batches are those of generate.py at the same --batch, and so are the pictures.
    """
    identity = settings_key(job)

    def share(rank: int, size: int) -> Iterator[Piece]:
        for start in range(rank * job.batch, len(job.seeds), size * job.batch):
            seeds = job.seeds[start : start + job.batch]
            key = hashlib.sha256(f"{identity} {seeds}".encode()).hexdigest()
            yield Piece(start, key, len(seeds), functools.partial(_read, job, seeds))

    return share


def told_facts(facts: Mapping[str, Tensor], batch: int) -> dict[str, Any]:
    """For a row: mean NFE, and batch sizes if memory did not suffice for ``batch`` everywhere."""
    nfe = {name: facts[name].mean().item() for name in ("nfe", "guide_nfe")}
    return nfe | told_batches(Counter(facts["batch"].tolist()), batch)


def settings_key(job: Job) -> str:
    """64 hexadecimal digits for the networks' bytes, all settings but the seeds, and the code."""
    identity = {name: value for name, value in job.identity.items() if name not in STORAGE}
    files = [job.model.sha256, job.guide and job.guide.sha256]
    told = json.dumps([plain(identity), files, job.batch, code_key(CODE)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


@functools.cache
def code_key(folder: Path) -> str:
    """64 hexadecimal digits for all Python files of a folder and the version of PyTorch."""
    files = [sha256_of(path) for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(" ".join([torch.__version__, *files]).encode()).hexdigest()


def _read(job: Job, seeds: list[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    parts: list[Batch] = list(  # several where the memory did not suffice for one
        generate(
            job.model, seeds, job.settings, guide_model=job.guide, labels=job.labels,
            batch=job.batch, noise_device=job.noise_device,
        )
    )  # fmt: skip
    sizes = torch.tensor([len(part.seeds) for part in parts])
    facts = {
        name: torch.tensor([getattr(part, field) for part in parts], dtype=kind)
        .repeat_interleave(sizes)
        for name, field, kind in FACTS
    }  # fmt: skip
    classes = [part.classes for part in parts if part.classes is not None]
    if classes:
        facts["labels"] = torch.cat(classes)
    return torch.cat([part.images for part in parts]), torch.arange(len(seeds)), facts

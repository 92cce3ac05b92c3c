"""One pass: every image is decoded once and shown to all extractors; features go to the store.

Chunks are the unit of work. Their key names their content, so whatever is in the store already,
from an earlier run, another process or a shard, is not made again.
"""

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from erk.io.untrusted import ShapeError
from erk.runtime.distributed import World, gather
from erk.runtime.memory import fitting, halved
from metrics.extractors import Extractor, Features
from metrics.images import BrokenImageError, ImageSource, place, read_bytes, read_image
from metrics.statistics import check_finite
from metrics.store import holds, load, save

CHUNK = 256  # images: small enough to hold two of them decoded, large enough for few files
CHUNK_BYTES = 1 << 28  # of their pixels; fewer images beyond: those of 512 pixels take less
FIELDS = ("features", "logits", "spatial")

Wanted = Mapping[str, Sequence[str]]
"""Extractor -> which of its outputs (FIELDS) are wanted."""


class Pictures(NamedTuple):
    """The images of a chunk."""

    images: Tensor  # uint8 [n, C, H, W]
    kept: Tensor  # int64 [n], their places in the chunk; broken images leave gaps
    facts: dict[str, Tensor] = {}  # per image, [n] each: labels, nfe, ...


class Chunk(NamedTuple):
    """A piece of a set of images; anything with these four fields will do."""

    start: int  # place of its first image in the set
    key: str  # 64 hexadecimal digits; equal keys, equal images
    size: int  # images in it, broken ones included
    read: Callable[[], Any]  # -> Pictures, or the same fields in another tuple


class Found(NamedTuple):
    """Features of a set of images, in order."""

    features: dict[str, Features]  # by extractor, on the CPU
    kept: Tensor  # int64 [n], places in the set of the images that could be read
    facts: dict[str, Tensor]  # per image, [n] each

    @property
    def n(self) -> int:
        return len(self.kept)


class Pass(NamedTuple):
    """How a pass over images is made."""

    extractors: Mapping[str, Extractor]
    wanted: Wanted
    folder: Path  # the store
    batch: int = 64  # images per network call
    skip_corrupt: bool = False
    device: torch.device | str = "cpu"  # where the extractors are
    image_size: int | None = None  # pixels that the images must have; None: any


def extract(images: Tensor | Iterable[Tensor], extractors: Mapping[str, Extractor]) -> Found:
    """All features of uint8 images [N, C, H, W], or of batches of them, in memory; no store.

    Raises ValueError for no images, NaN features or images that an extractor does not take.
    """
    parts: dict[str, list[Features]] = {name: [] for name in extractors}
    n = 0
    for batch in images.split(CHUNK) if isinstance(images, Tensor) else images:
        n += len(batch)
        for name, extractor in extractors.items():
            parts[name].append(extractor(batch))
    if not n:
        raise ValueError("there are no images to measure: give at least 2")
    features = {name: _joined([f._asdict() for f in found]) for name, found in parts.items()}
    for name, found in features.items():
        check_finite(found.features, f"{name} features")
    return Found(features, torch.arange(n), {})


def collect(
    how: Pass,
    chunks: Callable[[int, int], Iterable[Chunk]],
    world: World,
    total: int,
    what: str = "Measuring",
) -> Found | None:
    """Features of all chunks, in the first process; None in the others.

    ``chunks(rank, size)`` gives a process's share. ``total``: images in all, for the progress.
    """
    own = [
        (chunk.start, chunk.key, chunk.size)
        for chunk in work(how, chunks(world.rank, world.size), world, total, what)
    ]
    everything = sorted(chunk for share in gather(world, own) for chunk in share)
    return assemble(how, everything) if world.rank == 0 else None


def work(
    how: Pass, chunks: Iterable[Chunk], world: World, total: int, what: str = "Measuring"
) -> Iterator[Chunk]:
    """See to it that the store holds every chunk's features; yields the chunks that it does hold.

    Raises ValueError for NaN features, broken images (unless they are skipped) and images that
    an extractor does not take.
    """
    quiet = 0.5 if sys.stderr.isatty() else 30  # a log file needs no line every moment
    share = -(-total // world.size)
    with tqdm(total=share, desc=what, unit="img", mininterval=quiet, disable=world.rank > 0) as bar:
        for chunk in chunks:
            missing = _missing(how, chunk)
            if missing:
                pictures = _placed(how, Pictures(*chunk.read()))
                for name in missing:
                    _extract_one(how, name, chunk, pictures)
            bar.update(chunk.size)
            yield chunk


def assemble(how: Pass, chunks: Sequence[tuple[int, str, int]]) -> Found:
    """The features of chunks (start, key, size) from the store. Raises FileNotFoundError."""
    features, kept, facts = {}, torch.empty(0, dtype=torch.long), {}
    for name, extractor in how.extractors.items():
        every = [(start, load(how.folder, extractor, key)) for start, key, _ in chunks]
        parts = [part for _, part in every if len(part["kept"])]
        places = [part["kept"] + start for start, part in every]
        if any(field not in part for part in parts for field in how.wanted[name]):
            raise FileNotFoundError(
                f"features in {how.folder} were replaced by another run: run this one again"
            )
        features[name] = _joined([{f: part.get(f) for f in how.wanted[name]} for part in parts])
        kept = torch.cat(places)
        known = set(parts[0]) - {*FIELDS, "kept"}
        facts = {fact: torch.cat([part[fact] for part in parts]) for fact in known}
    return Found(features, kept, facts)


def image_chunks(
    source: ImageSource, how: Pass, workers: int | None = None
) -> Callable[[int, int], Iterator[Chunk]]:
    """The chunks of stored images, as ``collect`` wants them; threads read and decode ahead.

    A chunk's key is the hash of its pictures' bytes. Every size-th chunk belongs to one process.
    """

    def chunks(rank: int, size: int) -> Iterator[Chunk]:
        shape = first_shape(source, how.skip_corrupt)
        length = min(CHUNK, max(1, CHUNK_BYTES // math.prod(shape)))
        starts = range(0, len(source.names), length)
        with ThreadPoolExecutor(workers or min(16, (os.cpu_count() or 1) + 2)) as pool:
            opened = functools.partial(_open_chunk, source, how, pool, shape, length)
            yield from _one_ahead(opened, starts[rank::size])

    return chunks


def _one_ahead(function: Callable[[int], Chunk], items: Iterable[int]) -> Iterator[Chunk]:
    """function(item) of every item, each made in a thread while the one before is used."""
    waiting = None
    with ThreadPoolExecutor(1) as driver:
        for item in items:
            following = driver.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def first_shape(source: ImageSource, skip_corrupt: bool = False) -> tuple[int, ...]:
    """(H, W, C) of the first image that can be read. Raises ValueError if there is none."""
    for index in range(len(source.names)):
        try:
            return read_image(source, index).shape
        except BrokenImageError:
            if not skip_corrupt:
                raise
    raise ValueError(f"{source.path} holds no readable image: nothing can be measured")


def _open_chunk(
    source: ImageSource,
    how: Pass,
    pool: ThreadPoolExecutor,
    shape: tuple[int, ...],
    length: int,
    start: int,
) -> Chunk:
    """Read and hash the pictures of a chunk, and decode them if their features are wanting."""
    places = range(start, min(start + length, len(source.names)))
    data = list(pool.map(functools.partial(_fetch, source, how), places))
    digests = pool.map(lambda piece: hashlib.sha256(piece or b"").digest(), data)
    key = hashlib.sha256(repr(shape).encode() + b"".join(digests)).hexdigest()
    chunk = Chunk(start, key, len(places), lambda: None)
    if not _missing(how, chunk):
        return chunk
    found = list(pool.map(lambda i, piece: _decode(source, how, shape, i, piece), places, data))
    kept = torch.tensor([i for i, image in enumerate(found) if image is not None])
    images = [image for image in found if image is not None]
    pixels = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    tensor = tensor.pin_memory() if torch.device(how.device).type == "cuda" else tensor
    return chunk._replace(read=lambda: Pictures(tensor, kept.long()))


def _fetch(source: ImageSource, how: Pass, index: int) -> bytes | None:
    try:
        return read_bytes(source, index)
    except BrokenImageError:
        if how.skip_corrupt:
            return None
        raise


def _decode(
    source: ImageSource, how: Pass, shape: tuple[int, ...], index: int, data: bytes | None
) -> np.ndarray | None:
    if data is None:
        return None
    try:
        return read_image(source, index, data, shape)
    except BrokenImageError:
        if how.skip_corrupt:
            return None
        raise
    except ShapeError as error:
        raise ValueError(
            f"{place(source, index)} is {_described(error.shape)} but the first image "
            f"is {_described(shape)}: measure images of one size and mode at a time"
        ) from None


def _missing(how: Pass, chunk: Chunk) -> list[str]:
    """The extractors whose features of the chunk are not in the store."""
    rows = None if how.skip_corrupt else chunk.size
    return [
        name
        for name, extractor in how.extractors.items()
        if not holds(how.folder, extractor, chunk.key, how.wanted[name], rows)
    ]


def _placed(how: Pass, pictures: Pictures) -> Pictures:
    """The pictures on the networks' device, for all of them; ValueError if of another size."""
    height, width = pictures.images.shape[2:]
    if how.image_size is not None and (height, width) != (how.image_size,) * 2:
        raise ValueError(
            f"the images have {width}x{height} pixels but the reference is of "
            f"{how.image_size}x{how.image_size}: their numbers would not compare"
        )
    return pictures._replace(images=pictures.images.to(how.device, non_blocking=True))


def _extract_one(how: Pass, name: str, chunk: Chunk, pictures: Pictures) -> None:
    extractor = how.extractors[name]
    if not len(pictures.kept):
        save(how.folder, extractor, chunk.key, {"kept": pictures.kept})
        return
    found = _joined(_features(extractor, pictures.images, how.batch))
    check_finite(found.features, f"{name} features of images from number {chunk.start} on")
    tensors = {field: getattr(found, field) for field in how.wanted[name]}
    save(how.folder, extractor, chunk.key, tensors | {"kept": pictures.kept} | pictures.facts)


def _features(extractor: Extractor, images: Tensor, batch: int) -> list[dict[str, Any]]:
    """Of ``batch`` images at a time, or of as many as fit into the memory."""

    def parts() -> list[dict[str, Any]]:
        return [extractor(part)._asdict() for part in images.split(batch)]

    batch = min(batch, len(images))
    while (found := fitting(parts)) is None:
        batch = halved(batch, f"measuring with {extractor.name}")
    return found


def _joined(parts: Sequence[Mapping[str, Tensor | None]]) -> Features:
    """One Features of several, on the CPU; fields that are None or absent stay None."""
    names = [field for field in FIELDS if parts[0].get(field) is not None]
    return Features(**{name: torch.cat([_cpu(part[name]) for part in parts]) for name in names})


def _cpu(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.cpu()


def _described(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"

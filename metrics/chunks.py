"""Sets of images in chunks, the unit of work: stored images are read and decoded ahead."""

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from erk.io.untrusted import ShapeError, header_shape
from metrics.images import (
    BrokenImageError,
    ImageSource,
    another_shape,
    first_shape,
    read_bytes,
    read_image,
)
from metrics.sizes import Size, check_same_size

NO_IMAGES = "there are no images to measure: give at least 2"
CHUNK = 256  # images: small enough to hold two of them decoded, large enough for few files
CHUNK_BYTES = 1 << 28  # of their pixels; chunks of images above 512 pixels hold fewer


class ImageBatch(NamedTuple):
    """The images of a chunk."""

    images: Tensor  # uint8 [n, C, H, W]
    positions: Tensor  # int64 [n], in the chunk; broken images leave gaps
    metadata: dict[str, Tensor] = {}  # per image, [n] each: labels, nfe, ...


class Chunk(NamedTuple):
    """A part of a set of images; any tuple with these four fields will do."""

    start: int  # position of its first image in the set
    key: str  # 64 hexadecimal digits; equal keys, equal images
    size: int  # number of images, broken ones included
    read: Callable[[], Any]  # -> ImageBatch, or its fields as a tuple


Chunks: TypeAlias = Callable[[int, int], Iterable[Chunk]]
"""(rank, size) -> the chunks of that process."""


@dataclass(frozen=True)
class Reading:
    """How stored images are read."""

    skip_corrupt: bool = False
    pinned: bool = False  # in memory that a GPU copies from faster
    needed: Callable[[Chunk], bool] = lambda _: True  # whether to decode a chunk's images
    workers: int | None = None  # threads; None: from the number of cores


class Batches:
    """Images in memory in batches [B, C, H, W] of one size, to be iterated over once.

    A tensor is split into chunks; an iterable of batches stays as it is, without the empty ones.

    Attributes
    ----------
    size
        Height and width of the images.

    Raises
    ------
    ValueError
        No images; while iterating: images of another size, or what is no tensor [B, C, H, W].
    """

    def __init__(self, images: Tensor | Iterable[Tensor]) -> None:
        parts = images.split(CHUNK) if isinstance(images, Tensor) else images
        self._parts = (part for part in map(_checked, parts) if len(part))
        first = next(self._parts, None)
        if first is None:
            raise ValueError(NO_IMAGES)
        self._first = first
        self.size: Size = (first.shape[2], first.shape[3])

    def __iter__(self) -> Iterator[Tensor]:
        for part in itertools.chain([self._first], self._parts):
            size = part.shape[2], part.shape[3]
            check_same_size({"the first batch": self.size, "another batch": size})
            yield part


def _checked(part: Any) -> Tensor:
    if not isinstance(part, Tensor) or part.ndim != 4 or part.dtype != torch.uint8:
        shape = f" {part.dtype} {list(part.shape)}" if hasattr(part, "shape") else ""
        raise ValueError(
            "images in memory must be uint8 tensors [N, C, H, W], or an iterable of them, not "
            f"{type(part).__name__}{shape}"
        )
    return part


def check_headers(source: ImageSource, skip_corrupt: bool = False) -> None:
    """Raise ValueError if an image of a folder has another shape than the first, by its header.

    `source_chunks` checks every image, but only when the networks have seen those before. Damaged
    files and archives are left to it.
    """
    if not source.path.is_dir():
        return
    shape, names = first_shape(source, skip_corrupt), source.names
    parts = [range(start, len(names))[:CHUNK] for start in range(0, len(names), CHUNK)]

    def other(part: range) -> tuple[int, tuple[int, ...]] | None:
        for index in part:
            actual = header_shape(source.path / names[index])
            if actual not in (None, shape):
                return index, actual
        return None

    with ThreadPoolExecutor(min(16, len(parts))) as pool:  # opening waits on a shared disk
        for found in pool.map(other, parts):
            if found is not None:
                raise another_shape(source, *found, shape)


def tensor_chunks(images: Iterable[Tensor]) -> Iterator[Chunk]:
    """Yield batches of images in memory as chunks, keyed by their pixels."""
    start = 0
    for batch in images:
        pixels = batch.detach().cpu().contiguous()
        name = f"{pixels.dtype} {list(pixels.shape)}".encode()
        key = hashlib.sha256(name + pixels.numpy().tobytes()).hexdigest()
        read = functools.partial(ImageBatch, batch, torch.arange(len(batch)))
        yield Chunk(start, key, len(batch), read)
        start += len(batch)


def source_chunks(source: ImageSource, reading: Reading) -> Chunks:
    """Split stored images into chunks; threads read and decode ahead.

    A chunk's key is the hash of its images' bytes. Every size-th chunk belongs to one process.
    """

    def chunks(rank: int, size: int) -> Iterator[Chunk]:
        shape = first_shape(source, reading.skip_corrupt)
        length = min(CHUNK, max(1, CHUNK_BYTES // math.prod(shape)))
        starts = range(0, len(source.names), length)
        with ThreadPoolExecutor(reading.workers or min(16, (os.cpu_count() or 1) + 2)) as pool:
            opened = functools.partial(_open_chunk, source, reading, pool, shape, length)
            yield from _one_ahead(opened, starts[rank::size])

    return chunks


def _one_ahead(function: Callable[[int], Chunk], items: Iterable[int]) -> Iterator[Chunk]:
    """Yield function(item) of every item, computed in a thread while the one before is used."""
    waiting = None
    with ThreadPoolExecutor(1) as driver:
        for item in items:
            following = driver.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _open_chunk(
    source: ImageSource,
    reading: Reading,
    pool: ThreadPoolExecutor,
    shape: tuple[int, ...],
    length: int,
    start: int,
) -> Chunk:
    """Read and hash the images of a chunk, and decode them if their features are missing."""
    indices = range(start, min(start + length, len(source.names)))
    data = list(pool.map(functools.partial(_fetch, source, reading, shape), indices))
    digests = pool.map(lambda piece: hashlib.sha256(piece or b"").digest(), data)
    key = hashlib.sha256(repr(shape).encode() + b"".join(digests)).hexdigest()
    chunk = Chunk(start, key, len(indices), lambda: None)
    if not reading.needed(chunk):
        return chunk
    decode = functools.partial(_decode, source, reading, shape)
    decoded = list(pool.map(decode, indices, data))
    index = torch.tensor([i for i, image in enumerate(decoded) if image is not None]).long()
    images = [image for image in decoded if image is not None]
    pixels = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    tensor = tensor.pin_memory() if reading.pinned else tensor
    return chunk._replace(read=lambda: ImageBatch(tensor, index))


def _fetch(
    source: ImageSource, reading: Reading, shape: tuple[int, ...], index: int
) -> bytes | None:
    try:
        return read_bytes(source, index, shape)
    except BrokenImageError:
        if reading.skip_corrupt:
            return None
        raise


def _decode(
    source: ImageSource,
    reading: Reading,
    shape: tuple[int, ...],
    index: int,
    data: bytes | None,
) -> np.ndarray | None:
    if data is None:
        return None
    try:
        return read_image(source, index, data, shape)
    except BrokenImageError:
        if reading.skip_corrupt:
            return None
        raise
    except ShapeError as error:
        raise another_shape(source, index, error.shape, shape) from None

"""Read the images of a run, from its PNG files or from its archive."""

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from erk.generation.archives import ImageFiles
from erk.generation.images import png_bytes
from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_RATIO,
    MAX_PIXELS,
    MAX_RATIO,
    find_member,
    is_damage,
    open_archive,
    read_member,
    read_npy_header,
    seek_stored,
)

Read = Callable[[int], bytes]
"""seed -> the bytes of its PNG file; ValueError, naming the path, if it is damaged."""


@contextmanager
def open_images(
    files: ImageFiles, archive: Path | None, seeds: Sequence[int] | np.ndarray
) -> Iterator[Read]:
    """Open a run's PNG files, or its archive of the images of ``seeds``, for reading.

    The path of an image, or its row, follows from its seed: no name in a manifest is trusted.
    """
    with ExitStack() as stack:
        read: Read = partial(_read_file, files)
        if archive is not None:
            with _readable(archive):
                opened = stack.enter_context(open_archive(archive))
                if files.kind == "npz":
                    read = _npz_images(opened, np.unique(np.asarray(seeds, np.int64)))
                else:
                    read = _zip_images(opened, files)

        def read_or_name(seed: int) -> bytes:
            with _readable(archive or files.path(seed)):
                return read(seed)

        yield read_or_name


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise ValueError, naming the path, for what libraries raise on damaged files."""
    try:
        yield
    except DECODE_ERRORS as error:
        if not is_damage(error):
            raise
        raise ValueError(
            f"{path} is damaged: run the command of this run again with --verify"
        ) from error


def _read_file(files: ImageFiles, seed: int) -> bytes:
    return files.path(seed).read_bytes()


def _zip_images(archive: zipfile.ZipFile, files: ImageFiles) -> Read:
    return lambda seed: read_member(archive, files.name(seed), MAX_IMAGE_RATIO)


def _npz_images(archive: zipfile.ZipFile, seeds: np.ndarray) -> Read:
    """Return a function that reads the row of a seed in arr_0 and encodes it as a PNG file."""
    stream: Any = archive.fp
    info = find_member(archive, "arr_0.npy", 0, MAX_RATIO)
    seek_stored(stream, info)
    shape, _, dtype = read_npy_header(stream, info.file_size)
    begin, size = stream.tell(), math.prod(shape[1:])
    is_valid = len(shape) == 4 and dtype == np.uint8 and shape[3] in (1, 3)
    if not is_valid or not 0 < size <= 3 * MAX_PIXELS or shape[0] != len(seeds):
        raise ValueError("arr_0 does not hold the images of this run")

    def read(seed: int) -> bytes:
        stream.seek(begin + int(np.searchsorted(seeds, seed)) * size)
        pixels = np.frombuffer(stream.read(size), np.uint8)
        return png_bytes(pixels.reshape(shape[1:]).transpose(2, 0, 1))

    return read

"""Images on disk: one PNG per seed, written atomically; contact sheets."""

import io
import math
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erk.generation.seeds import MAX_SEED
from erk.io.atomic import make_folder, write_file
from erk.io.untrusted import decode_image, read_image_file
from erk.method.arguments import PATHS, require
from erk.models.noise import whole_numbers

Array = np.ndarray
IMAGE_NAME = re.compile(r"(\d{6,18})\.png")
PER_SUBDIR = 1000


def save_images(
    images: Any, folder: str | os.PathLike[str], seeds: Sequence[int] | None = None
) -> list[Path]:
    """Write images as PNG files named by seed: 000123.png.

    Parameters
    ----------
    images
        Tensor or array, uint8 [N, C, H, W] with C = 1 or 3, as `model.decode` returns them.
        Floats are refused, because nothing says whether their range is -1..1, 0..1 or 0..255.
    folder
        Folder to write to; it is created if it does not exist, and existing files of the same
        names are replaced.
    seeds
        One number per image, for the file names; default: 0 to N - 1.

    Returns
    -------
    list[Path]
        The files, in the order of the images.

    Raises
    ------
    ValueError
        For images of another dtype or shape, seeds that do not give each image its own file, and a
        folder that cannot be created or written to.
    OSError
        If a file cannot be written.
    """
    require(isinstance(folder, PATHS), "folder", "a path", folder)
    array = images.cpu().numpy() if hasattr(images, "cpu") else np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [N, C, H, W] with C = 1 or 3, not {array.dtype} "
            f"{list(array.shape)}: give model.decode(x0), or, for pixels in -1..1, "
            "(x0 * 127.5 + 128).clip(0, 255).to(torch.uint8)."
        )
    numbers = list(range(len(array))) if seeds is None else whole_numbers(seeds)
    if len(numbers) != len(array):
        raise ValueError(f"{len(array)} images need as many seeds, not {len(numbers)}.")
    if numbers and not 0 <= min(numbers) <= max(numbers) <= MAX_SEED:
        raise ValueError(f"seeds are 0 to {MAX_SEED}, not {min(numbers)} to {max(numbers)}.")
    if len(set(numbers)) < len(array):
        raise ValueError(
            "seeds repeat a number, so that images would share a file: give each once."
        )
    folder = Path(folder)
    make_folder(folder)
    paths = [image_path(folder, number) for number in numbers]
    for file, image in zip(paths, array, strict=True):
        write_file(file, png_bytes(image))
    return paths


def image_path(folder: Path, seed: int, subdirs: bool = False) -> Path:
    """Return the path of a seed's image: 000123.png, with `subdirs` 000000/000123.png."""
    parent = folder / _subdir(seed) if subdirs else folder
    return parent / f"{seed:06d}.png"


def _subdir(seed: int) -> str:
    return f"{seed // PER_SUBDIR * PER_SUBDIR:06d}"


STORED = np.dtype([("seed", np.int64), ("file_size", np.int64)])


def stored_images(folder: Path, subdirs: bool) -> Array:
    """List the seeds whose file exists at its path, with its size: `STORED` [N], by seed.

    Raises ValueError if a file or a sub-folder of images is a link.
    """
    seeds, sizes = array("q"), array("q")
    for file in image_files(folder):
        match = IMAGE_NAME.fullmatch(file.name)
        if match is not None:
            seed = int(match[1])
            parent = os.path.basename(os.path.dirname(file.path)) if subdirs else None
            if file.name == f"{seed:06d}.png" and parent in (None, _subdir(seed)):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    size = file.stat(follow_symlinks=False).st_size
                    seeds.append(seed)
                    sizes.append(size)
    stored = np.empty(len(seeds), STORED)
    stored["seed"], stored["file_size"] = seeds, sizes
    return stored[np.argsort(stored["seed"], kind="stable")]


def image_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """List the files of a folder and of its numbered sub-folders; none if it does not exist.

    Raises ValueError if an image or a sub-folder is a link: writing would follow it.
    """
    folders = [os.fspath(folder)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                is_subdir = entry.name.isdecimal()
                if entry.is_symlink() and (is_subdir or IMAGE_NAME.fullmatch(entry.name)):
                    refuse_link(Path(entry.path))
                if is_subdir and entry.is_dir():
                    folders.append(entry.path)
                else:
                    yield entry


def refuse_link(path: Path) -> None:
    """Raise ValueError: `path` is a link, though it is a run's file or folder."""
    raise ValueError(
        f"{path} is a link, so the run would read or write elsewhere: delete the link, or choose "
        "another --outdir."
    )


def png_bytes(image: Array) -> bytes:
    """Encode an image uint8 [C, H, W] (C = 1 or 3) as a PNG file.

    compress_type 3 (run lengths) at level 1 spares zlib the search for matches; the files are at
    most 1.3 times as large as with Pillow's default.
    """
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1, compress_type=3)
    return stream.getvalue()


def read_png(source: Path | bytes) -> Array:
    """Read a PNG file, or its bytes, as uint8 [C, H, W].

    Raises OSError, or ValueError if it is damaged or not of 8-bit grey or RGB pixels.
    """
    data = source if isinstance(source, bytes) else read_image_file(source)
    return decode_image(data).transpose(2, 0, 1)


def row_bytes(image: Array) -> bytes:
    """Return the bytes of an image uint8 [C, H, W] as a row of an .npz holds it, [H, W, C]."""
    return image.transpose(1, 2, 0).tobytes()


def sheet(images: Array, columns: int | None = None, scale: int = 1, gap: int = 1) -> Array:
    """Arrange images uint8 [N, C, H, W] row by row on white, uint8 [C, H', W'].

    Parameters
    ----------
    images : array
        uint8 [N, C, H, W].
    columns : int, optional
        Default: as many as make the sheet about square.
    scale : int
        Each pixel becomes scale x scale pixels.
    gap : int
        White pixels between images.
    """
    n, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    h, w = h * scale, w * scale
    rows = math.ceil(n / columns)
    page = np.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        enlarged = image.repeat(scale, axis=1).repeat(scale, axis=2)
        page[:, top : top + h, left : left + w] = enlarged
    return page

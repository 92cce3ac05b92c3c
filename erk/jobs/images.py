"""Pictures on disk: one PNG per seed, written whole or not at all; archives; contact sheets."""

import io
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray


def image_path(folder: Path, seed: int, subdirs: bool = False) -> Path:
    """Where the picture of a seed lies: 000123.png, with `subdirs` 000000/000123.png."""
    place = folder / f"{seed // 1000 * 1000:06d}" if subdirs else folder
    return place / f"{seed:06d}.png"


def png_bytes(image: Array) -> bytes:
    """uint8 [C, H, W] (C = 1 or 3) as a PNG file.

    compress_type 3 (run lengths) at level 1 spares zlib the search for matches; the files are at
    most 1.3 times as large as with Pillow's default.
    """
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1, compress_type=3)
    return stream.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it never exists in part, whatever kills this process."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def read_png(path: Path) -> Array:
    """The picture as uint8 [C, H, W]."""
    pixels = np.asarray(Image.open(path))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def pack_zip(target: Path, pictures: Sequence[Path], root: Path) -> None:
    """Gather PNG files, named relative to `root`, in an uncompressed archive (PNG is compressed).

    The same pictures give the same bytes: the archive carries no time stamps.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for picture in pictures:
            entry = zipfile.ZipInfo(picture.relative_to(root).as_posix())
            archive.writestr(entry, picture.read_bytes())
    os.replace(temporary, target)


def pack_npz(target: Path, pictures: Sequence[Path], seeds: Sequence[int]) -> None:
    """Gather pictures as arr_0 [N, H, W, C] uint8, with their seeds [N], in one .npz.

    One picture is in memory at a time, so 50 000 of them need no more than one.
    """
    first = read_png(pictures[0])
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(pictures), *first.shape[1:], first.shape[0]),
    }
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for picture in pictures:
                stream.write(np.ascontiguousarray(read_png(picture).transpose(1, 2, 0)).tobytes())
        with archive.open(zipfile.ZipInfo("seeds.npy"), "w") as stream:
            np.lib.format.write_array(stream, np.asarray(seeds, dtype=np.int64))
    os.replace(temporary, target)


def sheet(images: Array, columns: int | None = None, scale: int = 1, gap: int = 1) -> Array:
    """Contact sheet: uint8 [N, C, H, W] -> [C, H', W'], row by row, on white."""
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

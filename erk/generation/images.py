"""Pictures on disk: one PNG per seed, written whole or not at all; archives; contact sheets."""

import io
import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from erk.io.atomic import replacing
from erk.io.untrusted import decode_image, read_image_file

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


def read_png(source: Path | bytes) -> Array:
    """The picture in a PNG file, or in its bytes, as uint8 [C, H, W].

    Raises OSError, or ValueError if it is broken or not of 8-bit grey or RGB pixels.
    """
    data = source if isinstance(source, bytes) else read_image_file(source)
    return decode_image(data).transpose(2, 0, 1)


def row_bytes(image: Array) -> bytes:
    """A picture uint8 [C, H, W] as a row of an .npz holds it, [H, W, C]."""
    return image.transpose(1, 2, 0).tobytes()


def is_whole_png(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does; others may have put it there in part."""
    with open(path, "rb") as file:
        start, length = file.read(8), file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 8))
        return start == b"\x89PNG\r\n\x1a\n" and file.read() == b"IEND\xaeB`\x82"


def pack_zip(target: Path, pictures: Iterable[tuple[str, bytes]]) -> None:
    """Gather PNG files, (name, bytes) each, in an uncompressed archive (PNG is compressed).

    The same pictures give the same bytes: the archive carries no time stamps.
    """
    with replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in pictures:
            archive.writestr(zipfile.ZipInfo(name), data)


def pack_npz(target: Path, pictures: Iterable[Array], seeds: Sequence[int]) -> None:
    """Gather pictures uint8 [C, H, W], one per seed, as arr_0 [N, H, W, C] with their seeds [N].

    One picture is in memory at a time, so 50 000 of them need no more than one.
    """
    rest = iter(pictures)
    first = next(rest)
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(seeds), *first.shape[1:], first.shape[0]),
    }
    with replacing(target) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for picture in chain([first], rest):
                stream.write(row_bytes(picture))
        with archive.open(zipfile.ZipInfo("seeds.npy"), "w") as stream:
            np.lib.format.write_array(stream, np.asarray(seeds, dtype=np.int64))


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

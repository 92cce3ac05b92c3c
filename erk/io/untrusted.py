"""Parts of files from strangers, read within bounds: JSON, zip members, arrays, pictures.

What a file claims is checked before memory is reserved for it, and whatever a library raises for
a damaged part becomes a ValueError.
"""

import io
import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

Array = np.ndarray

DEEPEST = 100  # levels of nested JSON
DIGITS = 20  # of a whole number in JSON: those of 64 bits
HEADER = 1 << 16  # bytes of an array's header
SMALL = 1 << 20  # bytes that a zip member may always have
GROWTH = 100  # how many times its size in the archive it may have: arrays may be full of zeros
PICTURE_GROWTH = 8  # of a picture, which is packed by itself
ARRAY_SMALL = 1 << 26  # bytes that an array may always have
MOST_PIXELS = 1 << 24  # of a picture: 4096 x 4096
MOST_BYTES = 1 << 26  # of a picture's file
PNG = b"\x89PNG\r\n\x1a\n"
MOST_SCANS = 100  # passes over the pixels of a JPEG file
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others expand without a limit
BROKEN = (  # what Pillow, zipfile and numpy raise for a damaged or locked file
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, KeyError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


class ModeError(ValueError):
    """A picture of another mode than 8-bit grey or RGB; its text is the mode."""


class ShapeError(ValueError):
    """A picture of another shape than was asked for; ``shape`` is its own."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(f"{shape[1]}x{shape[0]}")
        self.shape = shape


class TooLargeError(ValueError):
    """A picture, sound perhaps, that is larger than is read here; its text names both."""


class Header(NamedTuple):
    """How an array lies in a file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises ValueError for any other text, for numbers that are not finite or have more than 64
    bits, and for lists and objects nested more than ``DEEPEST`` deep.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for one in level if isinstance(one, list | dict)
            for child in (one.values() if isinstance(one, dict) else one)
        ]  # fmt: skip
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _int(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def read_member(archive: zipfile.ZipFile, name: str, growth: int = GROWTH) -> bytes:
    """A member of a zip, a text or a picture.

    Raises ValueError if it is not there, locked, damaged, or more than ``growth`` times as large as
    in the archive.
    """
    info = member_of(archive, name, SMALL, growth)
    try:
        with archive.open(info) as stream:
            data = stream.read(info.file_size)  # never without a number: that reads 2 GiB at once
    except BROKEN as error:
        raise ValueError(f"{name} in it is damaged: {error}") from error
    if len(data) != info.file_size:
        raise ValueError(f"{name} in it is cut off")
    return data


def member_of(archive: zipfile.ZipFile, name: str, small: int, growth: int) -> zipfile.ZipInfo:
    """A member of a zip that expands by at most ``growth``, or to ``small`` bytes; ValueError."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it holds no {name}") from None
    if info.flag_bits & 1 or info.compress_type not in PACKED:
        raise ValueError(f"{name} in it is locked, or packed in another way than zip's usual ones")
    assert archive.fp is not None
    packed = min(info.compress_size, os.fstat(archive.fp.fileno()).st_size)
    if info.file_size > max(small, growth * packed):
        raise ValueError(f"{name} in it grows from {packed} to {info.file_size} bytes")
    return info


def read_header(stream: IO[bytes], size: int) -> Header:
    """The header of an array in a file of ``size`` bytes (.npy), which must hold all of its values.

    The stream stands at the first value then. Raises ValueError, also for pickled objects.
    """
    start = stream.tell()
    file = io.BytesIO(stream.read(min(size, HEADER)))  # which claims a length of its own
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} of an array is unknown")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        found = Header(*read(file))
    except MemoryError:
        raise
    except Exception as error:  # numpy evaluates the header, which can raise anything
        raise ValueError(f"an array has no sound header ({error})") from error
    if found.dtype.hasobject:
        raise ValueError("Object arrays are refused: they hold pickles")
    if not all(type(n) is int for n in found.shape):  # numpy lets True pass
        raise ValueError("an array has a shape that is none")
    least = math.prod(n or 1 for n in found.shape) * (found.dtype.itemsize or 1)
    is_false = found.nbytes != size - file.tell()
    if min(found.shape, default=0) < 0 or is_false or least > size + SMALL:  # (10**18, 0) is empty
        raise ValueError(f"an array of shape {list(found.shape)[:9]} does not fit its bytes")
    stream.seek(start + file.tell())
    return found


def read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """The array ``name`` of an npz. Raises ValueError as `read_header` and `member_of` do."""
    info = member_of(archive, f"{name}.npy", ARRAY_SMALL, GROWTH)
    try:
        with archive.open(info) as stream:
            header = read_header(stream, info.file_size)
            array = np.empty(math.prod(header.shape), header.dtype)
            _fill(stream, array.view(np.uint8) if array.nbytes else array)
    except BROKEN as error:
        raise ValueError(f"{name} in it is damaged: {error}") from error
    return array.reshape(header.shape, order="F" if header.is_fortran else "C")


def _fill(stream: IO[bytes], raw: Array) -> None:
    """Read all bytes of an array, uint8 [n], piece by piece."""
    for start in range(0, raw.nbytes, SMALL):
        piece = stream.read(min(SMALL, raw.nbytes - start))
        raw[start : start + SMALL] = np.frombuffer(piece, np.uint8)  # ValueError if it is short


def read_picture_file(path: Path) -> bytes:
    """The bytes of a picture's file. Raises OSError, TooLargeError beyond ``MOST_BYTES``."""
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise TooLargeError(f"more than {MOST_BYTES} bytes")
    return data


def picture(data: bytes, shape: tuple[int, ...] | None = None) -> Array:
    """A PNG or JPEG file of 8-bit grey or RGB pixels -> uint8 [H, W, C], C = 1 or 3.

    ``shape``: what it must be. Raises ModeError, ShapeError, TooLargeError beyond ``MOST_PIXELS``,
    or ValueError for what is broken or no such file.
    """
    try:
        with open_picture(data) as image:
            _check(image, data, shape)
            pixels = np.asarray(image)
    except (ModeError, ShapeError, TooLargeError, MemoryError):
        raise
    except Exception as error:  # every decoder has its own errors
        raise ValueError(f"it cannot be decoded ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def open_picture(data: bytes, most: int = MOST_PIXELS) -> Image.Image:
    """A PNG or JPEG file of at most ``most`` pixels, of which only the header has been read.

    Raises TooLargeError, ValueError for a JPEG of too many scans, UnidentifiedImageError for
    another file, and what Pillow raises for damaged ones.
    """
    # Not Image.open: it warns at a bound of its own, and some of its formats start programs.
    kind = PngImageFile if data.startswith(PNG) else JpegImageFile
    try:
        image = kind(io.BytesIO(data))
    except SyntaxError as error:
        raise UnidentifiedImageError(str(error)) from error
    if image.width * image.height > most:
        raise TooLargeError(f"{image.width}x{image.height}, more than {most} pixels")
    if image.format == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError("it passes over its pixels too often")
    return image


def _check(image: Image.Image, data: bytes, shape: tuple[int, ...] | None) -> None:
    """Whether a picture may be decoded; only its header has been read so far."""
    if image.mode not in ("L", "RGB"):
        raise ModeError(image.mode)
    if image.format == "PNG" and data[24] == 16:  # the bit depth; Pillow drops the lower byte
        raise ModeError(f"{image.mode} of 16 bits")
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ModeError(f"{image.mode}, animated")
    found = (image.height, image.width, 1 if image.mode == "L" else 3)
    if shape is not None and found != tuple(shape):
        raise ShapeError(found)

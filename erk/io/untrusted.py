"""Bounded readers for parts of untrusted files: JSON, zip members, arrays, images.

Sizes that a file declares are checked before memory is allocated, and whatever a library raises for
a damaged part becomes a ValueError.
"""

import errno
import io
import itertools
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from erk.io.budget import MAX_RATIO, Budget
from erk.io.files import check_regular, open_regular

Array = np.ndarray

MAX_DEPTH = 100  # levels of nested JSON
MAX_DIGITS = 20  # of an integer in JSON: 64 bits
MAX_HEADER = 1 << 16  # bytes of an array's header
CHUNK = 1 << 20  # bytes read at a time, and the size that any zip member may have
MAX_IMAGE_RATIO = 8  # maximum decompression ratio of an image, whose format compresses it already
MIN_ARRAY_LIMIT = 1 << 26  # bytes that any array may have
MAX_PIXELS = 1 << 24  # of an image: 4096 x 4096
MAX_IMAGE_BYTES = 1 << 26  # of an image file
HEADER = 1 << 12  # bytes of an image file, which hold its header unless metadata come first
MAX_SCANS = 100  # of a JPEG file
PNG = b"\x89PNG\r\n\x1a\n"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: magic, lengths of name and extra
OTHER_FORMATS = {  # first bytes of images that are not read
    b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF",
}  # fmt: skip
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others have no bounded ratio
DECODE_ERRORS = (  # what Pillow, zipfile and numpy raise for a damaged or encrypted file
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, KeyError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


class RefusedError(ValueError):
    """A file that may be sound but is not read; the message says why."""


class ModeError(RefusedError):
    """An image that is neither 8-bit grey nor RGB; the message is its mode."""


class ShapeError(ValueError):
    """An image of an unexpected shape; ``shape`` is its actual one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(f"{shape[1]}x{shape[0]}")
        self.shape = shape


class TooLargeError(RefusedError):
    """A file beyond a size limit; the message names its size and the limit."""


class Header(NamedTuple):
    """Shape, memory order and type of an array in a file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse_json(data: bytes | str, budget: Budget | None = None) -> Any:
    """Parse JSON text; bytes are UTF-8, or UTF-16 or 32, with or without a byte order mark.

    Raises ValueError for malformed text, for more values than the budget (of a file of that size)
    has left, for numbers that are not finite or exceed 64 bits, for surrogates, and for lists and
    objects nested more than ``MAX_DEPTH`` deep.
    """
    text = data.decode(json.detect_encoding(data)) if isinstance(data, bytes) else data
    (budget or Budget(len(text))).create(sum(map(text.count, ",[{")))  # before they exist
    try:
        value = json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError for one surrogate alone
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for one in level if isinstance(one, list | dict)
            for child in (one.values() if isinstance(one, dict) else one)
        ]  # fmt: skip
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits, more than {MAX_DIGITS}")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def open_archive(path: str | Path) -> zipfile.ZipFile:
    """Open a zip file for reading. Raises OSError, or ValueError for what is not a zip.

    Give `archive_budget` to the functions below that read its members.
    """
    check_regular(path)
    try:
        archive = zipfile.ZipFile(path)
        check_members(archive)
        return archive
    except DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is not a readable zip file: create it again ({error})") from error


def check_members(archive: zipfile.ZipFile) -> None:
    """Raise ValueError if members share bytes, whose sum could be any multiple of the file's.

    The packed bytes of a member and its header must end before the next member begins.
    """
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    for member, after in itertools.zip_longest(members, members[1:]):
        start = member.header_offset + LOCAL_HEADER.size + len(member.orig_filename)
        end = archive.start_dir if after is None else after.header_offset
        if start + member.compress_size > end:
            raise ValueError(f"{member.filename[:100]} in it overlaps with another member")


def archive_budget(archive: zipfile.ZipFile) -> Budget:
    """Return what reading all members of an open zip may cost together."""
    assert archive.fp is not None
    return Budget(os.fstat(archive.fp.fileno()).st_size)


def read_member(
    archive: zipfile.ZipFile,
    name: str,
    ratio: int = MAX_RATIO,
    budget: Budget | None = None,
    limit: int = CHUNK,
) -> bytes:
    """Read a member of a zip.

    Raises as `find_member`, and ValueError if it is damaged or larger than the budget has left.
    """
    info = find_member(archive, name, limit, ratio)
    if budget is not None:
        budget.allocate(info.file_size)
    try:
        with archive.open(info) as stream:
            data = stream.read(info.file_size)  # without a size, zipfile reads 2 GiB at once
    except DECODE_ERRORS as error:
        raise ValueError(f"{name} in it is damaged: {error}") from error
    if len(data) != info.file_size:
        raise ValueError(f"{name} in it is truncated")
    return data


def find_member(archive: zipfile.ZipFile, name: str, limit: int, ratio: int) -> zipfile.ZipInfo:
    """Return the metadata of a zip member that can be read within bounds.

    Raises ValueError if it is missing, RefusedError if it is encrypted or compressed by an unusual
    method, and TooLargeError if it is larger than both ``limit`` bytes and ``ratio`` times its
    compressed size.
    """
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it has no {name}") from None
    if info.flag_bits & 1 or info.compress_type not in METHODS:
        raise RefusedError(f"{name} in it is encrypted or neither stored nor deflated")
    assert archive.fp is not None
    packed = min(info.compress_size, os.fstat(archive.fp.fileno()).st_size)
    if info.file_size > max(limit, ratio * packed):
        raise TooLargeError(f"{name} in it grows from {packed} to {info.file_size} bytes")
    return info


def seek_stored(file: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Move an open zip file to the first byte of a stored member.

    Reading there checks no CRC, so one wrong bit does not spoil the other rows of an array. Raises
    ValueError if the member is compressed or has no header.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} in it is compressed")
    file.seek(member.header_offset)
    data = file.read(LOCAL_HEADER.size)
    if len(data) < LOCAL_HEADER.size or not data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{member.filename} in it has no header")
    _, name, extra = LOCAL_HEADER.unpack(data)
    file.seek(name + extra, 1)


def is_damage(error: Exception) -> bool:
    """Return whether an error is of a file's content; False: of the disk or the system."""
    # EINVAL: a seek before the beginning of a file that was cut.
    return not isinstance(error, OSError) or error.errno in (None, errno.EINVAL)


def image_limit(shape: Sequence[int] | None) -> int:
    """Return the bytes that an image file may have, however small it is packed.

    An uncompressed file of its shape (H, W, C) fits; without a shape, of any image that is read.
    """
    return MAX_IMAGE_BYTES if shape is None else min(MAX_IMAGE_BYTES, CHUNK + 2 * math.prod(shape))


def read_npy_header(stream: IO[bytes], size: int) -> Header:
    """Read the header of an array from a .npy file of ``size`` bytes; leave the stream at its data.

    Raises ValueError for a malformed header, pickled objects, or a shape that does not match
    ``size``.
    """
    start = stream.tell()
    file = io.BytesIO(stream.read(min(size, MAX_HEADER)))  # the header declares its length itself
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} of an array is unknown")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        header = Header(*read(file))
    except MemoryError:
        raise
    except Exception as error:  # numpy evaluates the header, which can raise anything
        raise ValueError(f"an array has a malformed header ({error})") from error
    if header.dtype.hasobject:
        raise ValueError("Object arrays are refused: they contain pickles")
    if not all(type(n) is int for n in header.shape):  # numpy accepts True
        raise ValueError("an array has a malformed shape")
    least = math.prod(n or 1 for n in header.shape) * (header.dtype.itemsize or 1)
    differs = header.nbytes != size - file.tell()
    if min(header.shape, default=0) < 0 or differs or least > size + CHUNK:  # (10**18, 0) is empty
        raise ValueError(f"an array of shape {list(header.shape)[:9]} does not match its bytes")
    stream.seek(start + file.tell())
    return header


def read_array(archive: zipfile.ZipFile, name: str, budget: Budget | None = None) -> Array:
    """Read the array ``name`` of an npz.

    Raises ValueError as `read_npy_header` and `find_member`, and beyond the budget.
    """
    info = find_member(archive, f"{name}.npy", MIN_ARRAY_LIMIT, MAX_RATIO)
    if budget is not None:
        budget.allocate(info.file_size)
    try:
        with archive.open(info) as stream:
            header = read_npy_header(stream, info.file_size)
            array = np.empty(math.prod(header.shape), header.dtype)
            _fill(stream, array.view(np.uint8) if array.nbytes else array)
    except DECODE_ERRORS as error:
        raise ValueError(f"{name} in it is damaged: {error}") from error
    return array.reshape(header.shape, order="F" if header.is_fortran else "C")


def _fill(stream: IO[bytes], raw: Array) -> None:
    """Read all bytes of an array, uint8 [n], in chunks."""
    for start in range(0, raw.nbytes, CHUNK):
        piece = stream.read(min(CHUNK, raw.nbytes - start))
        raw[start : start + CHUNK] = np.frombuffer(piece, np.uint8)  # ValueError if it is short


def read_image_file(path: Path) -> bytes:
    """Read an image file. Raises OSError, or TooLargeError beyond ``MAX_IMAGE_BYTES``."""
    with open_regular(path) as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLargeError(f"more than {MAX_IMAGE_BYTES} bytes")
    return data


def decode_image(data: bytes, shape: tuple[int, ...] | None = None) -> Array:
    """Decode a PNG or JPEG file of 8-bit grey or RGB pixels.

    Parameters
    ----------
    data
        The file's bytes.
    shape
        Expected (H, W, C); None accepts any.

    Returns
    -------
    Array
        uint8 [H, W, C] with C = 1 or 3.

    Raises
    ------
    ModeError, ShapeError, TooLargeError
        Another mode or shape, or more than ``MAX_PIXELS``.
    RefusedError
        As `open_image`.
    ValueError
        For damaged files.
    """
    try:
        with open_image(data) as image:
            _check(image, data, shape)
            pixels = np.asarray(image)
    except (RefusedError, ShapeError, MemoryError):
        raise
    except Exception as error:  # every decoder raises its own classes
        raise ValueError(f"it cannot be decoded ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def open_image(data: bytes, limit: int = MAX_PIXELS) -> Image.Image:
    """Open a PNG or JPEG file of at most ``limit`` pixels, reading only its header.

    Raises TooLargeError, RefusedError for another format or a JPEG with too many scans,
    UnidentifiedImageError for what is no image, and Pillow's errors for damaged files.
    """
    other = next((name for start, name in OTHER_FORMATS.items() if data.startswith(start)), None)
    if other is not None:
        raise RefusedError(f"it is a {other} file: convert it to PNG")
    # Not Image.open: its limit only warns, and some formats start programs.
    kind = PngImageFile if data.startswith(PNG) else JpegImageFile
    try:
        image = kind(io.BytesIO(data))
    except SyntaxError as error:
        is_known = data.startswith((PNG, b"\xff\xd8"))
        raise UnidentifiedImageError(str(error) if is_known else "neither PNG nor JPEG") from error
    if image.width * image.height > limit:
        raise TooLargeError(f"{image.width}x{image.height}, more than {limit} pixels")
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise RefusedError(f"it is a JPEG with more than {MAX_SCANS} scans: convert it to PNG")
    return image


def header_shape(path: Path) -> tuple[int, int, int] | None:
    """Return (H, W, C) of an image file that `decode_image` reads, by its first bytes.

    None if these do not say it: decoding says more. Raises OSError.
    """
    with open_regular(path) as file:
        data = file.read(HEADER)
    try:
        with open_image(data) as image:
            _check(image, data, None)
            return image.height, image.width, 1 if image.mode == "L" else 3
    except Exception:  # every decoder raises its own classes
        return None


def check_depth(image: Image.Image, data: bytes) -> None:
    """Raise ModeError for more than 8 bits per channel: Pillow clips or cuts such values."""
    if image.mode.startswith(("I", "F")):
        raise ModeError(image.mode)
    if image.format == "PNG" and data[24] == 16:  # the bit depth
        raise ModeError(f"{image.mode} of 16 bits")


def _check(image: Image.Image, data: bytes, shape: tuple[int, ...] | None) -> None:
    """Check mode and shape before decoding; only the header has been read."""
    if image.mode not in ("L", "RGB"):
        raise ModeError(image.mode)
    check_depth(image, data)
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ModeError(f"{image.mode}, animated")
    actual = (image.height, image.width, 1 if image.mode == "L" else 3)
    if shape is not None and actual != tuple(shape):
        raise ShapeError(actual)

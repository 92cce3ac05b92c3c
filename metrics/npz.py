"""npz files without pickles: small arrays into memory, large ones mapped from the disk."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BROKEN = (  # what Pillow, zipfile and numpy raise for a damaged or locked file
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: magic, length of its name, of its extra


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz whose names are ``wanted`` and there; pickled objects are refused.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in wanted if name in archive.files}
    except (*BROKEN, AttributeError) as error:
        raise ValueError(f"{path} is not a readable npz file: make it again ({error})") from error


def map_npz(path: Path, name: str) -> np.ndarray | None:
    """One array of an npz, left on the disk where it is stored uncompressed; None: not there.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            member = archive.getinfo(f"{name}.npy")
        if member.compress_type == zipfile.ZIP_STORED:
            return _mapped(path, member)
    except BROKEN as error:
        raise ValueError(f"{path} is not a readable npz file: make it again ({error})") from error
    return read_npz(path, (name,))[name]


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        magic, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        if magic != b"PK\x03\x04":
            raise ValueError("a member has no header")
        file.seek(name + extra, 1)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} of an array is unknown")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("pickled objects are refused")
        at = file.tell()
        mapped = np.memmap(
            file, dtype, mode="r", offset=at, shape=shape[::-1] if fortran else shape
        )
        return mapped.T if fortran else mapped  # ValueError above if the file is cut

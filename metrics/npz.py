"""npz files without pickles: small arrays into memory, large ones mapped from the disk."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from erk.io.untrusted import (
    DECODE_ERRORS,
    archive_budget,
    find_member,
    open_archive,
    read_array,
    read_npy_header,
    seek_stored,
)


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an npz that are ``wanted`` and exist; pickled objects are refused.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        with open_archive(path) as archive:
            names, budget = set(archive.namelist()), archive_budget(archive)
            arrays = (name for name in wanted if f"{name}.npy" in names)
            return {name: read_array(archive, name, budget) for name in arrays}
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} is not a readable npz file: create it again ({error})") from error


def array_names(path: Path) -> list[str]:
    """List the arrays of an npz. Raises ValueError, naming the file, if it cannot be read."""
    try:
        with open_archive(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} is not a readable npz file: create it again ({error})") from error


def map_npz(path: Path, name: str) -> np.ndarray | None:
    """Open one array of an npz, memory-mapped if stored uncompressed; None: it does not exist.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        with open_archive(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            member = find_member(archive, f"{name}.npy", 0, 1 << 30)  # a mapping reads nothing
        if member.compress_type == zipfile.ZIP_STORED:
            return _mapped(path, member)
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} is not a readable npz file: create it again ({error})") from error
    return read_npz(path, (name,))[name]


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as file:
        seek_stored(file, member)
        shape, is_fortran, dtype = read_npy_header(file, member.file_size)
        mapped = np.memmap(
            file, dtype, mode="r", offset=file.tell(), shape=shape[::-1] if is_fortran else shape
        )
        return mapped.T if is_fortran else mapped  # ValueError above if the file is cut

"""Open files of others: regular files only, up to a size.

Opening a FIFO waits for a writer forever, and a link to /dev/zero has no end.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_TEXT = 1 << 26  # bytes of a text file: JSON, YAML, labels


class IrregularFileError(OSError):
    """A path that is a FIFO, a device or a socket."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without waiting.

    Raises OSError if it cannot be opened, IrregularFileError for a FIFO, device or socket.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        check_regular(path)  # a socket cannot be opened
        raise
    try:
        _check_mode(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> bytes:
    """Read a regular file. Raises OSError, or ValueError if it has more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        raise ValueError(f"{path} has more than {limit} bytes: give another file")
    return data


def read_hashed(path: str | os.PathLike[str], limit: int | None = None) -> tuple[bytes, str]:
    """Read a regular file; return its bytes and their sha256, 64 hexadecimal digits.

    Raises OSError, or ValueError if it has more than `limit` bytes; None: no limit.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    data = read_regular(path, size if limit is None else limit)
    return data, hashlib.sha256(data).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a regular file, 64 hexadecimal digits. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextmanager
def unchanged(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the sha256 of a file that the block reads, so that it is the hash of what was read.

    For files that are too large to keep in memory. Raises ValueError after the block if the file
    has another hash then.
    """
    sha256 = sha256_of(path)
    yield sha256
    if sha256_of(path) != sha256:
        raise ValueError(f"{path} changed while it was read: run the command again")


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise IrregularFileError for a FIFO, device or socket, OSError for a path without a file.

    For files that a library opens.
    """
    _check_mode(path, os.stat(path).st_mode)


def _check_mode(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{Path(path)} is a folder: give a file")
    if not stat.S_ISREG(mode):
        raise IrregularFileError(
            f"{Path(path)} is a FIFO, a device or a socket: give a regular file (copy it first)"
        )

"""Files that appear whole or not at all, and work that a signal does not cut in two."""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked this process to end; ``signum`` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Held:
    """Whether signals are held back just now, and the one that came meanwhile."""

    depth = 0
    signum: int | None = None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` at the end, unless an error comes before.

    The bytes are on the disk (fsync) before the name is, so that neither a killed process nor a
    power cut leaves half a file under that name. Raises OSError, which names the file.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            with open(draft, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it never exists in part, whatever ends this process."""
    with replacing(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Names given in a folder outlast a power cut from here on, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing that name no file name this one: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped within; of the main thread alone, others see no signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unbroken() -> Iterator[None]:
    """A signal that comes within is heard at the end: what was begun to be written is finished.

    Only the main thread hears signals, so in others there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Held.depth += 1
    try:
        yield
    finally:
        _Held.depth -= 1
        if _Held.depth == 0 and _Held.signum is not None:
            signum, _Held.signum = _Held.signum, None
            raise Stopped(signum)


def _stop(signum: int, _: Any) -> None:
    if _Held.depth:
        _Held.signum = signum
    else:
        raise Stopped(signum)

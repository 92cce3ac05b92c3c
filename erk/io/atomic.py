"""Atomic file writes, and blocks of work that a signal does not interrupt."""

import errno
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_NAME = 255 - len("..00000000.tmp")  # bytes of a file name, with room for its draft
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # what file systems without fsync answer
_DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.tmp")


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked this process to end; ``signum`` is the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Deferred:
    """Nesting depth of `uninterrupted` blocks, and the signal received inside them."""

    depth = 0
    signum: int | None = None


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: `path` never holds a part of `data`. Raises OSError."""
    with replacing(path) as file:
        file.write(data)


def save_file(path: str | Path, content: str | bytes) -> Path:
    """Write text or bytes atomically, creating the folders; return the path.

    Raises ValueError if the folder cannot be created or written to, OSError if the file cannot.
    """
    path = Path(path)
    make_folder(path.parent)
    with uninterrupted():
        write_file(path, content.encode() if isinstance(content, str) else content)
    return path


def write_new_file(path: Path, data: bytes) -> bool:
    """Write a file atomically unless it exists; return whether this call created it.

    Of several processes that call it at the same time, one creates the file. On file systems
    without hard links all of them do, and the last one wins. Raises OSError.
    """
    draft = draft_for(path)
    try:
        with attach_path(draft):
            _write(draft, data)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError:
            publish(draft, path)
        return True
    finally:
        _remove(draft)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a draft that replaces `path` when the block ends without an exception.

    The bytes are on disk (fsync) before the rename, so neither a killed process nor a power
    failure leaves a partial file under that name. Raises OSError with a filename.
    """
    draft = draft_for(path)
    try:
        with attach_path(path):
            with open(draft, "xb") as file:
                yield file
                sync(file)
            publish(draft, path)
    except BaseException:
        _remove(draft)
        raise


def remove_drafts(path: Path) -> None:
    """Remove the drafts that killed processes left of a file that nobody is writing now."""
    for draft in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if draft_target(draft) == path.name:
            draft.unlink()


def draft_for(path: Path) -> Path:
    """Return a unique hidden name beside `path` for its unfinished contents."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def draft_target(draft: Path) -> str | None:
    """Return the name of the file that a draft was to become; None for any other file."""
    match = _DRAFT.fullmatch(draft.name)
    return match["name"] if match else None


def publish(draft: Path, path: Path) -> None:
    """Rename a draft, whose bytes are on disk already, to its final name."""
    os.replace(draft, path)


def fsync_folder(folder: Path) -> None:
    """Fsync the directory so renames survive a power failure; no-op where unsupported."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def attach_path(path: Path) -> Iterator[None]:
    """Attach `path` to an OSError raised without a filename (e.g. ENOSPC)."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped on SIGINT or SIGTERM inside the block (main thread only).

    Where Python ignores what is raised, in __del__ and callbacks of weak references, the signal is
    sent again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_send_again, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block so writes are not interrupted.

    Then they act as they would have: Stopped within `stoppable`, else what the program does on
    them. Only the main thread receives signals; in other threads this is a no-op.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _Deferred.depth += 1
    try:
        for number, handler in handlers.items():
            if handler not in (None, _stop):  # _stop: within `stoppable` or another such block
                signal.signal(number, _stop)
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        _Deferred.depth -= 1
        if _Deferred.depth == 0 and _Deferred.signum is not None:
            signum, _Deferred.signum = _Deferred.signum, None
            signal.raise_signal(signum)


def _send_again(hook: Callable[[Any], Any], ignored: Any) -> None:
    if isinstance(ignored.exc_value, Stopped):
        threading.Timer(0.01, signal.raise_signal, [ignored.exc_value.signum]).start()
    else:
        hook(ignored)


def _stop(signum: int, _: Any) -> None:
    if _Deferred.depth:
        _Deferred.signum = signum
    else:
        raise Stopped(signum)


def sync(file: BinaryIO) -> None:
    """Flush a file to the disk (fsync); only to the system where the file system has no fsync."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        sync(file)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def check_writable(folder: Path) -> None:
    """Raise ValueError if a folder cannot be created or written to; writes nothing."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK):
        reason = "is not a folder" if not path.is_dir() else "is not writable"
        raise ValueError(f"cannot write to {folder}: {path} {reason}; choose another folder.")


def make_folder(folder: Path) -> None:
    """Create a folder that files are written to. Raises ValueError if that cannot be done."""
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # no permission says that nothing can be created in /proc
        raise ValueError(
            f"cannot create the folder {folder} ({error.strerror}): choose another folder."
        ) from error


IMAGES = (".png", ".jpg", ".jpeg")  # suffixes of files that a folder's readers would add
READ = (*IMAGES, ".npz", ".zip", ".jsonl", ".safetensors", ".pkl")  # that are read in folders
SIDE_FILES = ("run.json", "dataset.json")  # likewise


def _holds(source: Path, target: Path) -> bool:
    """Return whether writing `target` replaces `source` or one of its files, or adds an image."""
    if not source.exists():
        return False
    if not source.is_dir():
        return target.is_file() and source.samefile(target)
    suffix = target.suffix.lower()
    is_read = target.is_file() and (suffix in READ or target.name in SIDE_FILES)
    is_within = source.resolve() in target.resolve().parents
    return is_within and (is_read or suffix in IMAGES)


def check_target(path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None) -> None:
    """Raise ValueError if a file cannot be written; for commands that work long before they do.

    Nor may it replace one of the files `inputs`, or what is read in a folder among them, where it
    may add no image either; names of inputs that are no paths are ignored.
    """
    target = Path(path)
    for source in inputs:
        if source is not None and _holds(Path(source), target):
            raise ValueError(f"{target} is read by this command: choose another file to write")
    if target.is_dir():
        raise ValueError(f"{target} is a folder: give the path of a file")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise ValueError(f"the file name {target.name[:40]}... is too long: choose a shorter one")
    check_writable(target.absolute().parent)

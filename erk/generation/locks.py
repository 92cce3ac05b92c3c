"""Locks of a run's folder: no two processes write the same images, or finish at the same time."""

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from erk.generation.images import refuse_link
from erk.io.atomic import uninterrupted

LOCK = ".lock"  # held for a moment: while a process begins, finishes or tidies up
ROLE = re.compile(r"\.\d+-of-\d+\.lock")  # held by the process of a shard until it ends
TIMEOUT = 3600  # seconds to wait for a process that packs an archive
POLL = 0.05  # seconds between two tries
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without locks, where nothing protects two processes from each other."""


class FolderLocks:
    """The locks that a process takes in the folder of a run.

    The system releases them when the process dies. ``shard`` (i, n) is the process's role: only
    shards of the same n work in a folder at the same time.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] | None) -> None:
        self.folder, self.count = folder, (shard or (0, 1))[1]
        self.path = folder / f".{'-of-'.join(map(str, shard or (0, 1)))}.lock"
        self.is_held = False
        self._role: Any = None  # its lock; None where there are no locks
        self._held: list[Any] = []  # the folder's lock

    @contextmanager
    def brief(self) -> Iterator[None]:
        """Hold the folder's lock. Raises ValueError after an hour of waiting.

        A signal may end a block before its lock is given back; it is this process's until then, and
        another block does not wait for it.
        """
        if not self._held:
            self._wait()
        try:
            yield
        finally:
            with uninterrupted():
                while self._held:
                    _release(self._held.pop())

    def _wait(self) -> None:
        """Wait for the folder's lock. Raises ValueError after an hour."""
        end = time.monotonic() + TIMEOUT
        while True:
            with uninterrupted():  # no signal comes between a lock and its entry
                lock = _acquire(self.folder / LOCK)
                if lock is not False:
                    self._held.append(lock)
                    return
            if time.monotonic() > end:
                raise ValueError(
                    f"{self.folder / LOCK} is held by another process: end it"
                    + _about_marker(self.folder / LOCK)
                )
            time.sleep(POLL)

    def claim(self) -> None:
        """Take this process's role, within `brief`; remove the files of processes that died.

        Raises ValueError if a process is at work that would write the same images.
        """
        for path in self._others(unlike=f"-of-{self.count}.lock"):
            if not _remove_unheld(path):
                self._refuse(path)
        role = _acquire(self.path)
        if role is False:
            self._refuse(self.path)
        self._role, self.is_held = role, True

    def release(self) -> None:
        """Give the role back, if it is held."""
        if self.is_held:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            _release(self._role)
            self.is_held = False

    def remove(self) -> None:
        """Remove the files of the locks, within `brief`: the run is complete or abandoned."""
        self.release()
        with suppress(OSError):
            (self.folder / LOCK).unlink(missing_ok=True)

    def is_alone(self) -> bool:
        """Whether no other process is at work in the folder; within `brief`."""
        held = [path for path in self._others() if not _remove_unheld(path)]
        return not held

    def _others(self, unlike: str = "\0") -> list[Path]:
        """List the files of other roles, without those whose name ends in `unlike`."""
        paths = (path for path in self.folder.glob(".*.lock") if ROLE.fullmatch(path.name))
        return [path for path in paths if path != self.path and not path.name.endswith(unlike)]

    def _refuse(self, path: Path) -> None:
        shard, _, count = path.name.strip(".").removesuffix(".lock").partition("-of-")
        what = f"shard {shard} of {count}" if count != "1" else "another process"
        raise ValueError(
            f"{self.folder} is in use, {what} is sampling into it: wait until it has ended, then "
            f"run this command again, or choose another --outdir{_about_marker(path)}."
        )


def _acquire(path: Path) -> Any:
    """Lock a file; return its lock, False if another process holds it, None without locks."""
    from filelock import FileLock, Timeout  # late: a tenth of a second

    if path.is_symlink():
        refuse_link(path)
    path.parent.stat()  # FileNotFoundError: filelock would create the folder again
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        return None
    return lock


def _about_marker(path: Path) -> str:
    """Say what to do about a lock that outlives its process, on file systems without locks.

    There the file is the lock, and names its process and machine; others are empty.
    """
    with suppress(OSError, ValueError):  # ValueError: it is empty
        pid, host, *_ = path.read_text("utf-8").splitlines()
        return f"; if process {pid} of {host} has died with its machine, delete {path}"
    return ""


def _release(lock: Any) -> None:
    if lock is not None:
        lock.release()


def _remove_unheld(path: Path) -> bool:
    """Remove the file of a role unless a process holds it; return whether it is removed."""
    lock = _acquire(path)
    if lock is False:
        return False
    with suppress(OSError):
        path.unlink(missing_ok=True)
    _release(lock)
    return True

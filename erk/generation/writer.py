"""Work that runs beside the caller's: pictures go to the disk while the next ones are sampled."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Barrier
from typing import Any

from erk.io.atomic import uninterrupted

DEPTH = 2  # pieces of work that wait, beside the one that is being done
MOST = 8  # threads; more encode faster than a disk takes it

HandOver = Callable[..., None]
"""hand_over(function, *args, **kwargs): it is called later, in a thread."""


@contextmanager
def beside(
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext, depth: int = DEPTH
) -> Iterator[HandOver]:
    """Does what is handed over one after the other, in order, in a thread of its own.

    Handing over waits while ``depth`` others do, so that the memory stays bounded. An error is
    raised by the next ``hand_over``, or at the end, and what was to come after it is dropped. If
    the block ends by an error of its own or by a signal, what was handed over is still done.
    ``waiting`` is entered while the caller waits.
    """
    pending: deque[Future[Any]] = deque()

    def finish_first() -> None:
        try:
            with waiting():
                pending.popleft().result()
        except BaseException:
            runner.shutdown(cancel_futures=True)
            raise

    def hand_over(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        with uninterrupted():  # a signal between the lines must not lose what is handed over
            while len(pending) > depth or (pending and pending[0].done()):
                finish_first()
            pending.append(runner.submit(function, *args, **kwargs))

    with _running(1) as runner:
        try:
            yield hand_over
            with uninterrupted():
                while pending:
                    finish_first()
        finally:
            with uninterrupted():
                runner.shutdown()


@contextmanager
def threads(count: int) -> Iterator[Callable[..., Any]]:
    """``map`` over that many threads, in order; a single one would only cost its switches."""
    if count == 1:
        yield map
        return
    with _running(count) as pool:
        yield pool.map


@contextmanager
def _running(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads run from the start: later the sampler may leave no memory for them."""
    with ThreadPoolExecutor(count) as pool:
        meeting = Barrier(count)
        try:
            for thread in [pool.submit(meeting.wait) for _ in range(count)]:
                thread.result()
        except RuntimeError as error:
            raise MemoryError("no thread can be started here: end other programs") from error
        finally:
            meeting.abort()  # whoever came while others did not goes on
        yield pool


def spare_cores() -> int:
    """Threads that may work beside this process's own: its share of the machine's cores, less one,
    and from 1 to ``MOST``."""
    ours = getattr(os, "sched_getaffinity", None)  # Linux tells which cores we may use
    cores = len(ours(0)) if ours else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST, max(1, cores // processes - 1))

"""Threads that encode and write images while the next ones are sampled."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Barrier
from typing import Any

from erk.io.atomic import uninterrupted

DEPTH = 2  # tasks that wait, in addition to the running one
MAX_THREADS = 8  # more encode faster than a disk writes

Submit = Callable[..., None]
"""submit(function, *args, **kwargs): call the function later, in the background thread."""


@contextmanager
def background(
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext, depth: int = DEPTH
) -> Iterator[Submit]:
    """Run submitted tasks one after the other, in order, in one background thread.

    `submit` blocks while ``depth`` tasks wait, so memory stays bounded. An error of a task is
    raised by the next `submit` or at the end of the block, and later tasks are dropped. If the
    block itself raises, all submitted tasks are still run.

    Parameters
    ----------
    waiting : callable
        Gives a context manager that is entered while the caller waits.
    depth : int
        Tasks that may wait.
    """
    pending: deque[Future[Any]] = deque()

    def finish_first() -> None:
        try:
            with waiting():
                pending.popleft().result()
        except BaseException:
            runner.shutdown(cancel_futures=True)
            raise

    def submit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        with uninterrupted():  # a signal between these lines must not lose the task
            while len(pending) > depth or (pending and pending[0].done()):
                finish_first()
            pending.append(runner.submit(function, *args, **kwargs))

    with _started(1) as runner:
        try:
            yield submit
            with uninterrupted():
                while pending:
                    finish_first()
        finally:
            with uninterrupted():
                runner.shutdown()


@contextmanager
def thread_map(count: int) -> Iterator[Callable[..., Any]]:
    """Give a `map` over this many threads, in order. With one thread, use plain `map`."""
    if count == 1:
        yield map
        return
    with _started(count) as pool:
        yield pool.map


@contextmanager
def _started(count: int) -> Iterator[ThreadPoolExecutor]:
    """Start all threads of a pool at once: later the sampler may leave no memory for them."""
    with ThreadPoolExecutor(count) as pool:
        barrier = Barrier(count)
        try:
            for thread in [pool.submit(barrier.wait) for _ in range(count)]:
                thread.result()
        except RuntimeError as error:
            raise MemoryError("no thread can be started: end other programs") from error
        finally:
            barrier.abort()  # releases the threads that wait for others
        yield pool


def spare_cores() -> int:
    """Return the threads that may work beside this process's sampler, 1 to `MAX_THREADS`.

    These are the process's share of the machine's cores, less one.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores that we may use
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MAX_THREADS, max(1, cores // processes - 1))

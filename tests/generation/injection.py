"""Faults that come while generate.py works, and what its user may see of them."""

import os
import threading
from contextlib import contextmanager

import pytest

import erk.generation.run
from erk.generation.run_folder import RunFolder

JOB = ["--preset", "digits", "--device", "cpu", "--steps", "3", "--batch", "4",
       "--labels", "balanced", "--seeds", "0-19"]  # fmt: skip
KINDS = ["png", "zip", "npz"]


def check_refused(done, message):
    """The command ended with one sentence that holds the message."""
    assert done.exit_code == 2, done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and message in last, done.stderr


@contextmanager
def after(batches, fault):
    """Within, call ``fault(monkeypatch)`` as soon as that many batches are written."""
    original, store = erk.generation.run.generate, RunFolder._store
    written = threading.Semaphore(0)
    with pytest.MonkeyPatch.context() as patch:

        def watched(*arguments, **named):
            for number, batch in enumerate(original(*arguments, **named)):
                if number == batches:
                    for _ in range(batches):
                        assert written.acquire(timeout=60)
                    fault(patch)
                yield batch

        def counted(*arguments):
            store(*arguments)
            written.release()

        patch.setattr(erk.generation.run, "generate", watched)
        patch.setattr(RunFolder, "_store", counted)
        yield


def no_more_writing(code):
    """Return a fault: nothing reaches the disk any more, with the system's error number."""

    def failing(handle):
        raise OSError(code, os.strerror(code))

    return lambda patch: patch.setattr(os, "fsync", failing)

"""Modules run as commands in processes of their group, each within a time limit."""

import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

DONE = "done"
LAST_LINES = 5  # of a piece's output, kept with its state


def run_piece(words: Sequence[str], limit: float, preload: Sequence[str] = ()) -> dict[str, Any]:
    """Run `python -m` with these words, ended with its processes after `limit` seconds.

    The process is forked from a server, which imports the modules `preload` once; it must not have
    used a GPU, so for those there are none. Returns state, seconds, command and last output.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))  # in effect for the first piece
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"
        process = context.Process(target=_run, args=(tuple(words), log))
        start = time.monotonic()
        process.start()
        try:
            process.join(limit)
            state = _state(process.exitcode, limit)
        finally:
            if process.is_alive():
                with suppress(ProcessLookupError):  # it may have no group yet
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.kill()
                process.join()
        lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return {
        "state": state,
        "seconds": time.monotonic() - start,
        "command": " ".join(["python", "-m", *words]),
        "output": lines[-LAST_LINES:],
    }


def _state(status: int | None, limit: float) -> str:
    """Describe the exit status of a process, None while it runs."""
    if status is None:
        return f"ended after {limit:.0f} s"
    return DONE if status == 0 else f"failed with status {status}"


def _run(words: Sequence[str], log: Path) -> None:
    """Run a module as `python -m` does, in a process group of its id, with its output in a file."""
    os.setpgid(0, 0)
    set_start_method(None, force=True)  # for its processes: else that of this one
    with log.open("w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)

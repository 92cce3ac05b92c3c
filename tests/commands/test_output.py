"""Output cannot be lost, stop commands or control the terminal; lacks of memory and of disk."""

import errno
import io
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from command_runs import NETS
from processes import ended, start

from erk.commands.cli import clean_exit, sentence
from erk.commands.main import main


@clean_exit
def say(text):
    click.echo(text)


def test_closed_output_stops_nothing(monkeypatch):
    """M25"""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("a row")


def test_latin_1_output(monkeypatch):
    """M25: what the encoding lacks is escaped."""
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    say("– é")
    stream.flush()
    assert stream.buffer.getvalue().decode("latin-1") == "\\u2013 é\n"


def test_control_characters_are_escaped(capsys):
    """M19"""
    say("a\x07b")
    assert capsys.readouterr().out == "a\\x07b\n"


# Memory

SHORTAGES = {
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9000000000 bytes. Error code 12 (Cannot allocate memory)"
    ): "memory ran out (9000000000 bytes could not be allocated): end other programs, or ",
    np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("u1")):
        "memory ran out (1.00 TiB could not be allocated): end other programs, or ",
    MemoryError(): "memory ran out: end other programs, or ",
    RuntimeError("can't start new thread"): "no thread can be started, for lack of memory",
}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Return an npz of ten digits' size."""
    np.savez(tmp_path / "few.npz", images=np.zeros((10, 8, 8), np.uint8))
    return tmp_path / "few.npz"


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("words", "target", "advice"),
    [
        (["evaluate", "--ref", "digits", "--images"], "metrics.evaluation.moments_of",
         "give a smaller --batch"),
        (["nearest", "--train", "digits", "--out", "a.png"], "metrics.nearest.lower_bounds",
         "process fewer or smaller images"),
        (["make-reference", "--extractors", "digits", "--dest", "a.npz", "--images"],
         "metrics.build_reference.Moments", "give a smaller --batch"),
        (["convert"], "erk.models.checkpoint.without_weights", "process fewer or smaller images"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)  # fmt: skip
def test_a_lack_of_memory_is_a_sentence(
    words, target, advice, error, images, tmp_path, monkeypatch
):
    """J2: PyTorch's CPU allocator raises RuntimeError; readers may take it for a damaged file."""

    def fail(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target, fail)
    files = [NETS / "edm2_pixel.pkl", "a.safetensors"] if words == ["convert"] else [images]
    done = CliRunner().invoke(main, [*words, *map(str, files)])
    assert done.exit_code == 2, done.output
    message = SHORTAGES[error]
    advice = advice if message.endswith("or ") else ""
    assert f"Error: {message}{advice}" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("a.*"))


def with_little_memory(arguments):
    """Run the command with 1/4 GiB more than this process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    main([str(argument) for argument in arguments], prog_name="erk")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
def test_the_memory_really_is_short(tmp_path):
    """J2: pixels of float32 take four times the bytes of the images. What needs memory first, an
    array or a thread, depends on the libraries of the process."""
    np.savez(tmp_path / "large.npz", images=np.zeros((24, 1024, 1024, 3), np.uint8))
    words = ["nearest", "large.npz", "--train", "large.npz", "--out", "a.png", "--device", "cpu"]
    log = tmp_path / "log"
    assert ended(start(with_little_memory, words, cwd=tmp_path, log=log)) == 2, log.read_text()
    assert re.match("Error: (memory ran out|no thread can be started, for)", log.read_text())
    assert len(log.read_text().splitlines()) == 1 and not (tmp_path / "a.png").exists()


JOBS = {
    "calibrate": ["--preset", "digits", "--solver", "heun", "--schedule", "edm", "--nfe", "5",
                  "--seeds", "8", "--evaluations", "16", "--correction", "stepwise",
                  "--out", "out/a.card.json"],
    "evaluate": ["--images", "few.npz", "--ref", "digits", "--metrics", "fd",
                 "--json", "out/row.json", "--csv", "out/row.csv", "--cache", "features"],
}  # fmt: skip
FAULTS = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "; free some space, then run"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), "; choose another folder"),
    "Ctrl-C": (KeyboardInterrupt(), "Stopped. Run the same command again to go on."),
}


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_disk_that_takes_no_more_and_ctrl_c(job, images, tmp_path, monkeypatch):
    """J: one sentence, nothing half-written; the same command goes on to the same bytes.

    The second file cannot be written; `erk generate` is in tests/generation/test_disk.py.
    """
    monkeypatch.chdir(tmp_path)
    out, sync = Path("out"), os.fsync

    def written():
        return {p.name: p.read_bytes() for p in out.rglob("*.*")}

    def run():
        return CliRunner().invoke(main, [job, *JOBS[job]])

    results = []
    for error, message in FAULTS.values():
        calls = []

        def failing(handle, error=error, calls=calls):
            calls.append(handle)
            if len(calls) == 2:
                raise error
            sync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            done = run()
        assert done.exit_code == (130 if message.startswith("Stopped") else 2), done.output
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*.tmp"))
        assert not (out / "a.card.json").exists() and not (out / "row.json").exists()
        assert run().exit_code == 0
        results.append(written())
        shutil.rmtree(out)
        shutil.rmtree("features", ignore_errors=True)
    assert run().exit_code == 0
    assert results == [written()] * 3


def test_a_file_that_no_memory_was_left_for_is_not_called_damaged():
    """'large.npz is not a readable npz file: create it again ([Errno 12] Cannot allocate ...)'."""
    wrong = ValueError("large.npz is not a readable npz file: create it again")
    wrong.__cause__ = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    assert sentence(wrong).startswith("memory ran out")

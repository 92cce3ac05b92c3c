"""Signals and closed pipes: a run that was stopped goes on and ends with the same bytes."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_runs import check_run, command
from injection import JOB, KINDS
from processes import ended, start

import metrics.features
from erk.commands import evaluate


def stopped_while_writing(arguments, number, signum):
    """Run the command, which gets a signal at its sync of that number, while it writes."""
    original, left = os.fsync, iter(range(number))

    def watched(handle):
        if next(left, None) is None:
            os.fsync = original
            os.kill(os.getpid(), signum)
        return original(handle)

    os.fsync = watched
    command(arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_batch_be_written(kind, signum, code, tmp_path, undisturbed):
    """All images of the batch, and of those that were sampled while it was written, exist and
    have their lines; the run goes on after them."""
    job, log = [*JOB, "--format", kind], tmp_path / "log"
    number = 1 + 5 + 1  # run.json, a batch, into the next one
    process = start(stopped_while_writing, job, number, signum, cwd=tmp_path, log=log)
    assert ended(process) == code
    assert log.read_text().splitlines()[-1] == "Stopped. Run the same command again to go on."
    assert "Traceback" not in log.read_text()
    (manifest,) = (tmp_path / "out" / ".parts").glob("*.jsonl")
    listed = [json.loads(line)["seed"] for line in manifest.read_text().splitlines()]
    assert listed == [*range(len(listed))] and len(listed) in (8, 12, 16, 20)
    files = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert files == [f"{seed:06d}.png" for seed in listed]
    assert ended(start(command, job, cwd=tmp_path)) == 0
    check_run(tmp_path / "out", undisturbed / kind)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_sampling(signum, code, tmp_path, undisturbed):
    process = start(command, [*JOB, "--steps", "4000"], cwd=tmp_path, log=tmp_path / "log")
    while not (tmp_path / "out" / "run.json").exists():
        time.sleep(0.001)
        assert process.is_alive()
    os.kill(process.pid, signum)
    assert ended(process) == code
    assert "Traceback" not in (tmp_path / "log").read_text()


def stopped_while_measuring(arguments, signum):
    """Run evaluate.py, which gets a signal when the features of its first images are stored."""
    original = metrics.features.save

    def watched(*given):
        original(*given)
        os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.features, "save", watched)
        evaluate.main(arguments)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_measurement_that_is_stopped_goes_on(signum, code, tmp_path, generate, undisturbed):
    """Stored features are not computed again, and the numbers are the same."""
    measure = ["--images", str(undisturbed / "npz"), "--ref", "digits", "--cache", "features"]
    process = start(stopped_while_measuring, measure, signum, cwd=tmp_path, log=tmp_path / "log")
    assert ended(process) == code and len(list(tmp_path.rglob("*.safetensors"))) == 1
    rows = []
    for cache in ("features", "others"):
        arguments = [*measure[:-1], cache, "--json", f"{cache}.json"]
        assert CliRunner().invoke(evaluate.main, arguments).exit_code == 0
        rows.append(json.loads(Path(f"{cache}.json").read_text()))
    assert rows[0]["replicates"] == rows[1]["replicates"] and rows[0]["fd"] == rows[1]["fd"]


def into_closed_pipes(arguments, streams):
    """Run the command with nobody at the other end of these streams."""
    reader, writer = os.pipe()
    os.close(reader)
    for stream in streams:
        os.dup2(writer, stream)
    command(arguments)


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
def test_a_reader_who_leaves(streams, tmp_path, undisturbed):
    """The images matter more than the reader: the run ends as if nobody had read."""
    log = tmp_path / "log"
    assert ended(start(into_closed_pipes, JOB, streams, cwd=tmp_path, log=log)) == 0
    assert "Traceback" not in log.read_text()
    check_run(tmp_path / "out", undisturbed / "png")

"""Two ranks, of which one dies, waits or fails: the other ends, and the run goes on."""

import errno
import json
import os
import signal
import time

import pytest
from command_runs import check_run, command
from injection import JOB, after, no_more_writing
from processes import die_before, ended, start, start_ranks


def dying_rank(arguments, number):
    """Kill rank 1 before its file operation of that number; rank 0 goes on."""
    if os.environ["RANK"] == "1":
        die_before(number)
    command(arguments)


DEATH = {"png": 6, "zip": 2}  # operations of rank 1 before it dies in its second and last batch


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_one_rank_dies(kind, tmp_path, undisturbed):
    """The other one samples its share, says what happened and ends without torchrun's help."""
    logs, job = [tmp_path / "0", tmp_path / "1"], [*JOB, "--format", kind]
    ranks = start_ranks(job, tmp_path, logs, work=dying_rank, more=(DEATH[kind],))
    assert [ended(rank) for rank in ranks[::-1]] == [-signal.SIGKILL, 2]
    last = logs[0].read_text().splitlines()[-1]
    assert last.startswith("Error: another process of this run ended early")
    assert "Traceback" not in logs[0].read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["complete"] is False
    assert ended(start(command, job, cwd=tmp_path)) == 0
    check_run(tmp_path / "out", undisturbed / kind)


def slow_second_rank(arguments):
    """Let rank 1 take a minute for its second batch, so that rank 0 waits for it."""
    if os.environ["RANK"] == "1":
        with after(1, lambda _: time.sleep(60)):
            command(arguments)
    command(arguments)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_ranks(signum, tmp_path, undisturbed):
    """As torchrun passes it on: it ends the rank that samples and the rank that waits."""
    logs = [tmp_path / "0", tmp_path / "1"]
    ranks = start_ranks(JOB, tmp_path, logs, work=slow_second_rank)
    parts = tmp_path / "out" / ".parts"
    while sum(len(path.read_text().splitlines()) for path in parts.glob("*.jsonl")) < 16:
        time.sleep(0.01)
        assert all(rank.is_alive() for rank in ranks)
    time.sleep(0.2)  # rank 0 has sampled its share; it waits now or is about to
    for rank in ranks:
        os.kill(rank.pid, signum)
    assert [ended(rank) for rank in ranks] == [128 + signum] * 2
    assert [log.read_text().splitlines()[-1] for log in logs] == [
        "Stopped. Run the same command again to go on."
    ] * 2
    assert ended(start(command, JOB, cwd=tmp_path)) == 0
    check_run(tmp_path / "out", undisturbed / "png")


def test_a_rank_whose_disk_is_full_ends_the_others(tmp_path):
    """Each says one sentence: its error, or that another process has ended."""
    logs = [tmp_path / "0", tmp_path / "1"]
    ranks = start_ranks(JOB, tmp_path, logs, work=full_disk_of_one)
    assert [ended(rank) for rank in ranks] == [2, 2]
    last = [log.read_text().splitlines()[-1] for log in logs]
    assert "another process of this run ended early" in last[0]
    assert "No space left on device" in last[1]


def full_disk_of_one(arguments):
    if os.environ["RANK"] == "1":
        with after(1, no_more_writing(errno.ENOSPC)):
            command(arguments)
    command(arguments)

"""`erk generate` as processes: several of them, and processes that die."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from command_runs import DIGITS, SMALL, files, finish, record, start

from erk.commands.generate import main
from erk.runtime.distributed import barrier, broadcast, join

LONG = [*DIGITS, "--seeds", "0-47", "--steps", "24", "--batch", "4", "--labels", "balanced"]
"""48 images in 12 batches: long enough to be killed on the way."""


def kill_in_the_middle(folder, ranks):
    """Start LONG in `folder`, kill all its processes by signal 9 after some images."""
    process = start(folder, *LONG, ranks=ranks)
    end = time.time() + 120
    while time.time() < end and len(list((folder / "out").glob("0*.png"))) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for pid in [*children(process.pid), process.pid]:  # torchrun's workers lead own sessions
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return len(list((folder / "out").glob("0*.png"))), record(folder / "out")["complete"]


def children(pid):
    """Process ids below `pid`, all generations."""
    result = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        result += [int(child), *children(child)]
    return result


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    assert CliRunner().invoke(main, [*LONG, "--outdir", str(folder)]).exit_code == 0
    return files(folder)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_run_again_gives_the_same_bytes(ranks, undisturbed, generate, tmp_path):
    """The bytes of one process that nobody disturbed; with 2 ranks each image is one of two's."""
    written, complete = kill_in_the_middle(tmp_path, ranks)
    assert 0 < written < 48 and complete is False
    (tmp_path / "out" / ".000047.png.1.tmp").write_bytes(b"half an image")
    out = generate(*LONG).stdout if ranks == 1 else finish(start(tmp_path, *LONG, ranks=ranks))[0]
    assert out.count(f"48 images, {48 - written} of them new, NFE 47") == 1
    assert files(tmp_path / "out") == undisturbed
    content = record(tmp_path / "out")
    assert content["complete"] is True and content["nfe"] == 47 and content["processes"] == ranks


def test_processes_wait_for_each_other_longer_than_torch_does(monkeypatch):
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "init_process_group", lambda *a, **k: seen.append((a, k)))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: seen.append("left"))
    with join(torch.device("cpu")) as world:
        assert (world.rank, world.size) == (1, 2)
    (arguments, options), left = seen
    assert arguments == ("gloo",) and options["timeout"].days >= 1 and left == "left"


def test_one_process_makes_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join(torch.device("cpu")) as world:
        barrier(world)
        assert world[:2] == (0, 1) and broadcast(world, [3]) == [3]
        assert not torch.distributed.is_initialized()


def test_a_port_is_not_needed_for_one_process(generate, monkeypatch):
    """WORLD_SIZE 1, as `torchrun --nproc-per-node 1` sets it, opens no connection."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(socket.socket, "bind", lambda *_: pytest.fail("opened a port"))
    assert generate(*SMALL, "--seeds", "0-1").exit_code == 0

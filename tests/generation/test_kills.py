"""kill -9 at any moment: the run that goes on ends with the bytes of one that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_runs import check_run, command, in_this_process
from injection import KINDS
from processes import die_before, ended, forked, start, start_ranks

from erk.generation.run_folder import RunFolder
from erk.generation.sampling import ImageBatch

ROOT = Path(__file__).parents[2]
JOB = ["--preset", "digits", "--device", "cpu", "--steps", "6", "--batch", "4",
       "--labels", "balanced"]  # fmt: skip
SEEDS = [0, 1, 2, 1000, 1001]


# --- a folder, killed before each of its file operations ------------------------------------


def fill(kind, number, verify=False):
    """A run of SEEDS in two batches, killed before its file operation of that number."""
    die_before(number)
    settings = {"steps": 8, "format": kind, "subdirs": True}
    metadata = {"batch": 3, "network": None, "guide": None}
    run = RunFolder(Path("out"), settings, SEEDS, metadata, batch=3, grid=True, verify=verify)
    run.look()
    with run:
        for seeds in filter(None, (run.pending[:3], run.pending[3:])):
            images = [torch.full((1, 4, 4), seed % 251, dtype=torch.uint8) for seed in seeds]
            run.write(ImageBatch(seeds, torch.stack(images), None, 15.0, 0.0, 3))


def spoil(kind, folder):
    """Change an image of a complete run, and cut its manifest."""
    path = folder / ("000000/000001.png" if kind == "png" else f"images.{kind}")
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(b"".join(lines[:-1]))


def sweep(kind, is_spoilt):
    """A run killed before each operation in turn, killed once more at the same operation of the run
    that goes on, and then let alone."""
    assert forked(fill, kind, 10**6, cwd="undisturbed") == 0
    for number in range(100):
        if is_spoilt:
            shutil.copytree("undisturbed", str(number))
            spoil(kind, Path(str(number), "out"))
        ends = [forked(fill, kind, number, is_spoilt, cwd=str(number)) for _ in range(2)]
        assert forked(fill, kind, 10**6, is_spoilt, cwd=str(number)) == 0
        check_run(Path(str(number), "out"), Path("undisturbed", "out"))
        if ends == [0, 0]:  # it has no more operations than that
            print(number, "operations")
            return
        assert ends[0] == signal.SIGKILL


@pytest.mark.parametrize(
    ("kind", "is_spoilt"),
    [*((kind, False) for kind in KINDS), ("png", True),
     *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in KINDS if kind != "png")],
)  # fmt: skip
def test_killed_before_each_file_operation(kind, is_spoilt, memory_path):
    """Of a new run, and of one that restores a complete run."""
    log = memory_path / "log"
    code = ended(start(sweep, kind, is_spoilt, cwd=memory_path, log=log))
    assert code == 0, log.read_text()
    count, word = log.read_text().split()
    assert int(count) > 10 and word == "operations"


# --- generate.py, killed at random ----------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """{format: its folder} of a run that nobody disturbs, and the seconds of one."""
    root = tmp_path_factory.mktemp("undisturbed")
    for kind in KINDS:
        in_this_process([*JOB, "--seeds", "0-39", "--format", kind, "--outdir", root / kind])
    begin = time.perf_counter()
    again = [*JOB, "--seeds", "0-39", "--outdir", "again"]
    assert ended(start(command, again, cwd=root)) == 0
    return root, time.perf_counter() - begin


@pytest.mark.parametrize(
    ("kind", "ranks"), [("png", (1, 1)), ("zip", (1, 2)), ("npz", (1, 1)), ("png", (2, 1)),
                        ("zip", (2, 2))]
)  # fmt: skip
def test_killed_at_a_random_moment(kind, ranks, undisturbed, tmp_path):
    """``ranks``: processes that are killed together, and those that go on."""
    folders, seconds = undisturbed
    job = [*JOB, "--seeds", "0-39", "--format", kind]

    def begin(count):
        return start_ranks(job, tmp_path) if count == 2 else [start(command, job, cwd=tmp_path)]

    processes = begin(ranks[0])
    time.sleep(random.uniform(0.1, 1) * seconds)
    for process in processes:
        process.kill()
    assert {ended(process) for process in processes} <= {-signal.SIGKILL, 0}
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/0*.png")}
    assert [ended(process) for process in begin(ranks[1])] == [0] * ranks[1]
    check_run(tmp_path / "out", folders / kind)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # none is sampled twice


@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), (1, 2)])
def test_a_streamed_measurement_killed_at_a_random_moment(ranks, tmp_path):
    """Features are kept by batch; the moments of the rest come out the same to the last digit.

    ``ranks``: processes that are killed together, and those that go on.
    """
    job = [*JOB, "--seeds", "0-39", "--evaluate", "digits", "--json", "row.json"]
    rows = []
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
        where = {"cwd": tmp_path / name, "ERK_CACHE": str(tmp_path / name / "cache")}

        def begin(count, where=where):
            return start_ranks(job, **where) if count == 2 else [start(command, job, **where)]

        if name == "killed":
            processes = begin(ranks[0])
            while not list(tmp_path.glob("killed/cache/features/*/*/*.safetensors")):
                time.sleep(0.001)
                assert processes[0].is_alive()
            for process in processes:
                process.kill()
            assert {ended(process) for process in processes} == {-signal.SIGKILL}
            assert not (tmp_path / "killed" / "row.json").exists()
        assert {ended(process) for process in begin(ranks[1] if name == "killed" else 1)} == {0}
        rows.append(json.loads((tmp_path / name / "row.json").read_text()))
    for row in rows:
        row["run"].pop("command")
    assert rows[0] == rows[1]


# --- the real commands, many times ----------------------------------------------------------


def launch(folder, kind, ranks):
    """generate.py as its user starts it, alone or under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [*JOB, "--seeds", "0-199", "--format", kind, "--outdir", str(folder / "out")]
    return subprocess.Popen(
        [sys.executable, *(torchrun if ranks > 1 else []), ROOT / "generate.py", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def kill_all(process):
    """SIGKILL to a process and all below it; torchrun's workers lead separate sessions."""
    below = [process.pid]
    for pid in below:
        below += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in below[::-1]:
        os.kill(pid, signal.SIGKILL)
    process.wait(60)


@pytest.mark.slow  # 50 kills, 60 starts of Python and PyTorch
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["png", "zip", "npz", "png", "zip"])
def test_killed_five_times_in_a_row(kind, ranks, tmp_path):
    """Kills come anywhere, from the imports to the last archive; the run still gets there."""
    in_this_process([*JOB, "--seeds", "0-199", "--format", kind, "--outdir", tmp_path / "intact"])
    begin = time.perf_counter()
    launch(tmp_path / "timed", kind, ranks).wait(300)
    seconds = time.perf_counter() - begin
    for _ in range(5):
        process = launch(tmp_path, kind, ranks)
        time.sleep(random.uniform(0.4, 0.95) * seconds)
        kill_all(process)
    assert launch(tmp_path, kind, ranks).wait(300) == 0
    check_run(tmp_path / "out", tmp_path / "intact")


@pytest.mark.slow  # torchrun waits a while before it looks, and two starts of PyTorch
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("kind", ["png", "zip"])
def test_torchrun_ends_when_one_of_its_ranks_is_killed(kind, tmp_path):
    in_this_process([*JOB, "--seeds", "0-199", "--format", kind, "--outdir", tmp_path / "intact"])
    process = launch(tmp_path, kind, 2)
    while len(list((tmp_path / "out" / ".parts").glob("*.jsonl"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    *_, last = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(last), signal.SIGKILL)
    assert process.wait(120) not in (0, None)
    assert not json.loads((tmp_path / "out" / "run.json").read_text())["complete"]
    assert launch(tmp_path, kind, 1).wait(300) == 0
    check_run(tmp_path / "out", tmp_path / "intact")

"""Faults of disk, memory, network and user while generate.py works: a clear end, nothing lost.

Each test injects the fault, looks at what the user sees, lifts it and lets the same command go on:
the run must end with the bytes of one that nothing happened to.
"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from faults import (
    check_run,
    command,
    die_before,
    ended,
    in_this_process,
    start,
    start_ranks,
)

import erk.generation.options
import erk.generation.run
import erk.generation.run_folder
import metrics.features
from erk.commands import evaluate
from erk.commands.generate import main
from erk.generation.run_folder import RunFolder
from metrics.extractors import classifier

JOB = ["--preset", "digits", "--device", "cpu", "--steps", "3", "--batch", "4",
       "--labels", "balanced", "--seeds", "0-19"]  # fmt: skip
KINDS = ["png", "zip", "npz"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """{format: folder} of runs that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    for kind in KINDS:
        in_this_process([*JOB, "--format", kind, "--outdir", root / kind])
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command in this process, in an empty folder; its end without a traceback."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, kind="png"):
        done = CliRunner().invoke(main, [*map(str, arguments), "--format", kind])
        assert "Traceback" not in done.output, done.output
        return done

    return call


def refused(done, message):
    """The command ended with one sentence that holds the message."""
    assert done.exit_code == 2, done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and message in last, done.stderr


@contextmanager
def after(batches, fault):
    """Within, ``fault(monkeypatch)`` comes when so many batches are written."""
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
    """A fault: nothing gets to the disk any more, with the system's error number."""

    def failing(handle):
        raise OSError(code, os.strerror(code))

    return lambda patch: patch.setattr(os, "fsync", failing)


# --- the disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full(kind, small_disk, run, undisturbed):
    """It holds some of the pictures or of an archive; then it grows."""
    size = {"png": "40k", "zip": "20k", "npz": "20k"}[kind]
    subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
    out = small_disk / "out"
    done = run(*JOB, "--outdir", out, kind=kind)
    refused(done, "No space left on device")
    assert str(out) in done.stderr and "free some space, then run the same command" in done.stderr
    assert json.loads((out / "run.json").read_text())["complete"] is False
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert run(*JOB, "--outdir", out, kind=kind).exit_code == 0
    check_run(out, undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_writing_fails_in_the_middle(kind, code, run, undisturbed):
    """The disk is full, the quota used up, the cable out, the right taken away."""
    with after(2, no_more_writing(code)):
        done = run(*JOB, kind=kind)
    refused(done, os.strerror(code))
    assert "out" in done.stderr.splitlines()[-1]  # where
    assert not list(Path("out").rglob("*.tmp"))
    assert run(*JOB, kind=kind).exit_code == 0
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_with_many_threads_that_write(kind, run, undisturbed, monkeypatch):
    """All have ended when the command does; the order of lines stays that of the batches."""
    monkeypatch.setattr(erk.generation.run_folder, "spare_cores", lambda: 4)
    with after(2, no_more_writing(errno.ENOSPC)):
        refused(run(*JOB, kind=kind), "No space left on device")
    assert not list(Path("out").rglob("*.tmp"))
    (manifest,) = Path("out").rglob("*.jsonl")
    listed = [json.loads(line)["seed"] for line in manifest.read_text().splitlines()]
    assert listed == [*range(12)]  # a line precedes its image: the third batch has lines only
    assert len(list(Path("out").rglob("*.png"))) == 8
    assert run(*JOB, kind=kind).exit_code == 0
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_before_the_first_picture_leaves_nothing(kind, run):
    with after(0, no_more_writing(errno.ENOSPC)):
        refused(run(*JOB, kind=kind), "No space left on device")
    assert os.listdir() == []


@pytest.mark.parametrize(("kind", "more"), [("png", []), ("png", ["--subdirs"]), ("zip", [])])
@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_the_output_folder_vanishes(kind, more, how, run, undisturbed):
    """It is not made anew, which would leave a run that looks as if it had begun there."""

    def fault(_):
        shutil.rmtree("out") if how == "removed" else os.rename("out", "kept")

    with after(2, fault):
        done = run(*JOB, *more, kind=kind)
    refused(done, "out has been removed or renamed while the run wrote")
    assert os.listdir() == ([] if how == "removed" else ["kept"])
    if how == "renamed":
        os.rename("kept", "out")
    assert run(*JOB, *more, kind=kind).exit_code == 0
    if not more:
        check_run(Path("out"), undisturbed / kind)


def test_pictures_vanish_while_the_run_goes_on(run, undisturbed):
    """It does not call itself complete; the same command makes them again."""

    def fault(_):
        for seed in (1, 5):
            Path(f"out/{seed:06d}.png").unlink()

    with after(4, fault):
        refused(run(*JOB), "the images of the seeds 1,5 are missing in out")
    assert run(*JOB).exit_code == 0
    check_run(Path("out"), undisturbed / "png")


def as_nobody(arguments):
    """The command by a user who may not write to root's folders."""
    os.setgid(65534)
    os.setuid(65534)
    command(arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_the_right_to_write(memory_path):
    memory_path.chmod(0o755)
    log = memory_path / "log"
    assert ended(start(as_nobody, JOB, cwd=memory_path, log=log)) == 2
    lines = log.read_text().splitlines()
    assert len(lines) == 1 and "is not writable; choose another folder" in lines[0]
    assert os.listdir(memory_path) == ["log"]


# --- too many open files --------------------------------------------------------------------


def with_few_files(arguments, more):
    """The command with no more open files than there are after its first batch, and ``more``."""

    def fault(_):
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for handle in taken[:more]:
            os.close(handle)

    with after(1, fault):
        command(arguments)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_too_many_open_files(kind, tmp_path, undisturbed):
    """None to spare: a clear end. A handful: enough for any number of pictures and manifests."""
    job, log = [*JOB, "--format", kind], tmp_path / "log"
    assert ended(start(with_few_files, job, 0, cwd=tmp_path, log=log)) == 2
    last = log.read_text().splitlines()[-1]
    assert last.startswith("Error: Too many open files") and "ulimit -n" in last
    assert ended(start(with_few_files, job, 8, cwd=tmp_path, log=log)) == 0, log.read_text()
    check_run(tmp_path / "out", undisturbed / kind)


# --- memory ---------------------------------------------------------------------------------


def too_large(limit, error):
    """A fault: the network takes ``limit`` pictures at a time, and no more."""
    original = erk.generation.options.load_model

    class Small:
        def __init__(self, *arguments, **named):
            self.model = original(*arguments, **named)

        def __getattr__(self, name):
            return getattr(self.model, name)

        def __call__(self, x, *arguments):
            if len(x) > limit:
                raise error
            return self.model(x, *arguments)

    return Small


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved(error, run, monkeypatch):
    """Twice, from 8 to 2: the bytes are those of a run with --batch 2, and the record tells."""
    job = [*JOB, "--batch", "8"]
    assert run(*JOB, "--batch", "2", "--outdir", "two").exit_code == 0
    monkeypatch.setattr(erk.generation.options, "load_model", too_large(3, error))
    done = run(*job)
    assert done.exit_code == 0
    for large, small in ((8, 4), (4, 2)):
        assert f"with a batch of {large}: continuing with {small}," in done.stderr
    assert "batch sizes: 20 at 2; images of other batch sizes are rounded differently" in done.stdout
    check_run(Path("out"), Path("two"))
    record = json.loads(Path("out/run.json").read_text())
    assert record["batch"] == 8 and record["batches"] == {"2": 20}
    assert "batches" not in json.loads(Path("two/run.json").read_text())


def test_not_even_one_picture_fits(run, monkeypatch):
    monkeypatch.setattr(erk.generation.options, "load_model", too_large(0, MEMORY_ERRORS[0]))
    refused(run(*JOB), "even with a batch of 1: free memory, or use another")
    assert os.listdir() == []


def test_the_network_does_not_fit(run, monkeypatch):
    def failing(*_, **__):
        raise MEMORY_ERRORS[0]

    monkeypatch.setattr(erk.generation.options, "load_model", failing)
    refused(run(*JOB), "the networks do not fit into memory")


def test_other_errors_are_not_taken_for_lost_memory(run, monkeypatch):
    mistake = too_large(0, RuntimeError("a mistake"))
    monkeypatch.setattr(erk.generation.options, "load_model", mistake)
    with pytest.raises(RuntimeError, match="a mistake"):
        CliRunner().invoke(main, JOB, catch_exceptions=False)


def test_a_streamed_measurement_halves_its_batches(run, monkeypatch):
    """Sampling and measuring, each on its own; the numbers are those of half the batch."""
    monkeypatch.setenv("ERK_CACHE", str(Path("cache").absolute()))
    measure = [*JOB, "--evaluate", "digits", "--json", "row.json"]
    monkeypatch.setattr(erk.generation.options, "load_model", too_large(2, MEMORY_ERRORS[0]))
    original = classifier.ClassifierExtractor.__call__

    def small(self, images):
        if len(images) == 4:
            raise MEMORY_ERRORS[0]
        return original(self, images)

    monkeypatch.setattr(classifier.ClassifierExtractor, "__call__", small)
    done = run(*measure, "--batch", "4")
    assert done.exit_code == 0, done.output
    assert "sampling does not fit" in done.stderr and "measuring with digits" in done.stderr
    halved = json.loads(Path("row.json").read_text())
    assert halved["batches"] == {"2": 20}
    assert run(*measure, "--batch", "2").exit_code == 0
    row = json.loads(Path("row.json").read_text())
    assert halved["fd"] == pytest.approx(row["fd"], rel=1e-6) and "batches" not in row


def with_little_memory(arguments):
    """The command, with 1/4 GiB for all that it still asks for after the network is there."""
    original = erk.generation.options.load_model

    def limited(*given, **named):
        model = original(*given, **named)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erk.generation.options, "load_model", limited)
        command(arguments)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
def test_the_memory_really_is_short(tmp_path):
    log, job = tmp_path / "log", [*JOB[:-2], "--seeds", "0-3", "--batch", "8192"]
    assert ended(start(with_little_memory, job, cwd=tmp_path, log=log)) == 0, log.read_text()
    assert "does not fit into memory with a batch of 8192: continuing with 4" in log.read_text()
    batches = json.loads((tmp_path / "out" / "run.json").read_text())["batches"]
    assert sum(batches.values()) == 4 and max(map(int, batches)) < 8192


# --- signals --------------------------------------------------------------------------------


def stopped_while_writing(arguments, number, signum):
    """The command gets a signal at its sync of that number; it is in the middle of writing."""
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
    """All pictures of the batch, and of those that were sampled while it was written, are there
    with their lines, and the run goes on after them."""
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
    process = start(command, [*JOB, "--steps", "400"], cwd=tmp_path, log=tmp_path / "log")
    while not (tmp_path / "out" / "run.json").exists():
        time.sleep(0.001)
        assert process.is_alive()
    os.kill(process.pid, signum)
    assert ended(process) == code
    assert "Traceback" not in (tmp_path / "log").read_text()


def stopped_while_measuring(arguments, signum):
    """evaluate.py gets a signal when the features of its first images are kept."""
    original = metrics.features.save

    def watched(*given):
        original(*given)
        os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.features, "save", watched)
        evaluate.main(arguments)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_measurement_that_is_stopped_goes_on(signum, code, tmp_path, run, undisturbed):
    """Features that were kept are not made again, and the numbers are the same."""
    place = ["--images", str(undisturbed / "npz"), "--ref", "digits", "--cache", "features"]
    process = start(stopped_while_measuring, place, signum, cwd=tmp_path, log=tmp_path / "log")
    assert ended(process) == code and len(list(tmp_path.rglob("*.safetensors"))) == 1
    rows = []
    for cache in ("features", "others"):
        arguments = [*place[:-1], cache, "--json", f"{cache}.json"]
        assert CliRunner().invoke(evaluate.main, arguments).exit_code == 0
        rows.append(json.loads(Path(f"{cache}.json").read_text()))
    assert rows[0]["replicates"] == rows[1]["replicates"] and rows[0]["fd"] == rows[1]["fd"]


def test_a_streamed_measurement_on_a_full_disk(run, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(Path("cache").absolute()))
    measure = [*JOB, "--evaluate", "digits", "--json", "row.json"]
    original = metrics.features.save

    def failing(*given):
        no_more_writing(errno.ENOSPC)(patch)
        original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.features, "save", failing)
        refused(run(*measure), "No space left on device: ")
    assert not Path("row.json").exists() and not list(Path("cache").rglob("*.tmp"))
    assert run(*measure).exit_code == 0 and Path("row.json").exists()


# --- a reader who leaves, and a rank that dies ----------------------------------------------


def into_closed_pipes(arguments, streams):
    """The command, with nobody at the other end of these streams."""
    reader, writer = os.pipe()
    os.close(reader)
    for stream in streams:
        os.dup2(writer, stream)
    command(arguments)


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
def test_a_reader_who_leaves(streams, tmp_path, undisturbed):
    """The pictures matter more than who watches: the run ends as if nobody had been there."""
    log = tmp_path / "log"
    assert ended(start(into_closed_pipes, JOB, streams, cwd=tmp_path, log=log)) == 0
    assert "Traceback" not in log.read_text()
    check_run(tmp_path / "out", undisturbed / "png")


def dying_rank(arguments, number):
    """Rank 1 dies before its file operation of that number, rank 0 goes on."""
    if os.environ["RANK"] == "1":
        die_before(number)
    command(arguments)


DEATH = {"png": 6, "zip": 2}  # operations of rank 1 before it dies in its second and last batch


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_one_rank_dies(kind, tmp_path, undisturbed):
    """The other one makes its share, says what happened and ends by itself, without torchrun."""
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
    """Rank 1 makes one batch and then takes a minute for the next, so that rank 0 waits for it."""
    if os.environ["RANK"] == "1":
        with after(1, lambda _: time.sleep(60)):
            command(arguments)
    command(arguments)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_ranks(signum, tmp_path, undisturbed):
    """As torchrun passes it on: the one that samples and the one that waits both end by it."""
    logs = [tmp_path / "0", tmp_path / "1"]
    ranks = start_ranks(JOB, tmp_path, logs, work=slow_second_rank)
    parts = tmp_path / "out" / ".parts"
    while sum(len(path.read_text().splitlines()) for path in parts.glob("*.jsonl")) < 16:
        time.sleep(0.01)
        assert all(rank.is_alive() for rank in ranks)
    time.sleep(0.2)  # rank 0 has made its share; it waits now or is about to
    for rank in ranks:
        os.kill(rank.pid, signum)
    assert [ended(rank) for rank in ranks] == [128 + signum] * 2
    assert [log.read_text().splitlines()[-1] for log in logs] == [
        "Stopped. Run the same command again to go on."
    ] * 2
    assert ended(start(command, JOB, cwd=tmp_path)) == 0
    check_run(tmp_path / "out", undisturbed / "png")


def test_a_rank_whose_disk_is_full_ends_the_others(tmp_path):
    """One sentence of each: its own, and that another has ended."""
    logs = [tmp_path / "0", tmp_path / "1"]
    ranks = start_ranks(JOB, tmp_path, logs, work=full_disk_of_one)
    assert [ended(rank) for rank in ranks] == [2, 2]
    told = [log.read_text().splitlines()[-1] for log in logs]
    assert "another process of this run ended early" in told[0]
    assert "No space left on device" in told[1]


def full_disk_of_one(arguments):
    if os.environ["RANK"] == "1":
        with after(1, no_more_writing(errno.ENOSPC)):
            command(arguments)
    command(arguments)

"""Disk, permissions and open files while generate.py works: a clear end, nothing lost.

Each test injects the fault, checks what the user sees, lifts it and runs the same command again:
the run must end with the bytes of one that nothing happened to.
"""

import errno
import json
import os
import resource
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from command_runs import check_run, command
from injection import JOB, KINDS, after, check_refused, no_more_writing
from processes import ended, start

import erk.generation.run_folder
import metrics.features


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full(kind, small_disk, generate, undisturbed):
    """It takes some of the images or a part of an archive; then it grows."""
    size = {"png": "40k", "zip": "20k", "npz": "20k"}[kind]
    subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
    out = small_disk / "out"
    done = generate(*JOB, "--outdir", out, kind=kind)
    check_refused(done, "No space left on device")
    assert str(out) in done.stderr and "free some space, then run the same command" in done.stderr
    assert json.loads((out / "run.json").read_text())["complete"] is False
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert generate(*JOB, "--outdir", out, kind=kind).exit_code == 0
    check_run(out, undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_writing_fails_in_the_middle(kind, code, generate, undisturbed):
    """The disk is full, the quota used up, the cable out, the permission withdrawn."""
    with after(2, no_more_writing(code)):
        done = generate(*JOB, kind=kind)
    check_refused(done, os.strerror(code))
    assert "out" in done.stderr.splitlines()[-1]  # where
    assert not list(Path("out").rglob("*.tmp"))
    assert generate(*JOB, kind=kind).exit_code == 0
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_with_many_threads_that_write(kind, generate, undisturbed, monkeypatch):
    """All have ended when the command ends; lines keep the order of the batches."""
    monkeypatch.setattr(erk.generation.run_folder, "spare_cores", lambda: 4)
    with after(2, no_more_writing(errno.ENOSPC)):
        check_refused(generate(*JOB, kind=kind), "No space left on device")
    assert not list(Path("out").rglob("*.tmp"))
    (manifest,) = Path("out").rglob("*.jsonl")
    listed = [json.loads(line)["seed"] for line in manifest.read_text().splitlines()]
    # a line precedes its image: batches from the third on, until the error came, have lines only
    assert listed == [*range(len(listed))] and len(listed) in (12, 16, 20)
    assert len(list(Path("out").rglob("*.png"))) == 8
    assert generate(*JOB, kind=kind).exit_code == 0
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_before_the_first_image_leaves_nothing(kind, generate):
    with after(0, no_more_writing(errno.ENOSPC)):
        check_refused(generate(*JOB, kind=kind), "No space left on device")
    assert os.listdir() == []


@pytest.mark.parametrize(("kind", "more"), [("png", []), ("png", ["--subdirs"]), ("zip", [])])
@pytest.mark.parametrize("change", ["removed", "renamed"])
def test_the_output_folder_vanishes(kind, more, change, generate, undisturbed):
    """It is not created again: that would leave a run that seems to have begun there."""

    def fault(_):
        shutil.rmtree("out") if change == "removed" else os.rename("out", "kept")

    with after(2, fault):
        done = generate(*JOB, *more, kind=kind)
    check_refused(done, "out has been removed or renamed while the run wrote")
    assert os.listdir() == ([] if change == "removed" else ["kept"])
    if change == "renamed":
        os.rename("kept", "out")
    assert generate(*JOB, *more, kind=kind).exit_code == 0
    if not more:
        check_run(Path("out"), undisturbed / kind)


def test_images_vanish_while_the_run_goes_on(generate, undisturbed):
    """It does not call itself complete; the same command samples them again."""

    def fault(_):
        for seed in (1, 5):
            Path(f"out/{seed:06d}.png").unlink()

    with after(4, fault):
        check_refused(generate(*JOB), "the images of the seeds 1,5 are missing in out")
    assert generate(*JOB).exit_code == 0
    check_run(Path("out"), undisturbed / "png")


def as_nobody(arguments):
    """Run the command as a user who may not write to root's folders."""
    os.setgid(65534)
    os.setuid(65534)
    command(arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_permission_to_write_as_another_user(memory_path):
    memory_path.chmod(0o755)
    log = memory_path / "log"
    assert ended(start(as_nobody, JOB, cwd=memory_path, log=log)) == 2
    lines = log.read_text().splitlines()
    assert len(lines) == 1 and "is not writable; choose another folder" in lines[0]
    assert os.listdir(memory_path) == ["log"]


def test_a_streamed_measurement_on_a_full_disk(generate, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(Path("cache").absolute()))
    measure = [*JOB, "--evaluate", "digits", "--json", "row.json"]
    original = metrics.features.save

    def failing(*given):
        no_more_writing(errno.ENOSPC)(patch)
        original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.features, "save", failing)
        check_refused(generate(*measure), "No space left on device: ")
    assert not Path("row.json").exists() and not list(Path("cache").rglob("*.tmp"))
    assert generate(*measure).exit_code == 0 and Path("row.json").exists()


# --- too many open files --------------------------------------------------------------------


def with_few_files(arguments, more):
    """Run the command; after its first batch it may open ``more`` files and no others."""

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
    """None to spare: a clear end. A handful: enough for any number of images and manifests."""
    job, log = [*JOB, "--format", kind], tmp_path / "log"
    assert ended(start(with_few_files, job, 0, cwd=tmp_path, log=log)) == 2
    last = log.read_text().splitlines()[-1]
    assert last.startswith("Error: Too many open files") and "ulimit -n" in last
    assert ended(start(with_few_files, job, 8, cwd=tmp_path, log=log)) == 0, log.read_text()
    check_run(tmp_path / "out", undisturbed / kind)

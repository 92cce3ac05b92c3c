"""A complete run that is damaged afterwards: its command notices, and brings it back."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_runs import check_run, complete_runs, files
from injection import KINDS

from erk.commands.generate import main
from erk.commands.merge import main as merge

JOB = ["--preset", "digits", "--device", "cpu", "--steps", "2", "--batch", "4",
       "--labels", "balanced", "--seeds", "0-7"]  # fmt: skip
ARCHIVES = ["zip", "npz"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """{format: folder} of complete runs."""
    return complete_runs(tmp_path_factory, JOB, KINDS)


@pytest.fixture
def damage(tmp_path, monkeypatch, undisturbed):
    """Copy a complete run to the folder out, and change one file of it; None deletes it."""
    monkeypatch.chdir(tmp_path)

    def call(kind, name, change):
        shutil.copytree(undisturbed / kind, "out")
        path = Path("out", name)
        content = change(path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return call


def again(kind, *more):
    """Run the command of the run once more."""
    done = CliRunner().invoke(main, [*JOB, "--format", kind, *more])
    assert done.exit_code == 0, done.output
    return done


def flipped(content):
    """Change one bit of an image; the size stays. In an npz it follows the array's header."""
    at = content.index(b"\n") + 70 if b"\x93NUMPY" in content else len(content) // 3
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


CHANGES = {"deleted": lambda content: None, "cut": lambda content: content[:-40],
           "empty": lambda content: b""}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_is_deleted_or_cut_is_noticed(kind, change, damage, undisturbed):
    """H11: merging refuses it; the command that its message asks for brings it back."""
    damage(kind, f"images.{kind}", CHANGES[change])
    refused = CliRunner().invoke(merge, ["out", "--dest", "all"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1, refused.output
    assert f"images.{kind}" in refused.stderr and "run the command of this run" in refused.stderr
    done = again(kind)
    assert "the images of some seeds are missing or damaged (0-7)" in done.stderr
    check_run(Path("out"), undisturbed / kind)
    assert CliRunner().invoke(merge, ["out", "--dest", "all"]).exit_code == 0
    check_run(Path("all"), undisturbed / kind)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_changed_bit_in_an_archive(kind, damage, undisturbed):
    """H11: its size is the same, so --verify is needed, and the merge's message says so."""
    damage(kind, f"images.{kind}", flipped)
    assert "nothing to do (sizes compared; --verify reads them)" in again(kind).stdout
    refused = CliRunner().invoke(merge, ["out", "--dest", "all"])
    assert refused.exit_code == 2 and "with --verify" in refused.stderr, refused.output
    done = again(kind, "--verify")
    assert "out was complete, but the images of some seeds are missing" in done.stderr
    assert "1 of them new" in done.stdout
    check_run(Path("out"), undisturbed / kind)
    assert CliRunner().invoke(merge, ["out", "--dest", "all"]).exit_code == 0


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_changed_bit_beside_the_images(kind, damage, undisturbed):
    """H11: in the time stamp of a member, which no image depends on; nothing is sampled."""
    damage(kind, f"images.{kind}", lambda content: content[:10] + b"\1" + content[11:])
    done = again(kind, "--verify")
    assert "the archive in out is not as the run wrote it: it is packed again" in done.stderr
    check_run(Path("out"), undisturbed / kind)
    assert "nothing to do (sha256 verified)" in again(kind, "--verify").stdout


HEADERS = {"array": b"NUMPY", "directory": b"PK\1\2", "end": b"PK\5\6"}


@pytest.mark.parametrize("header", HEADERS)
def test_a_changed_bit_in_the_headers_of_an_npz(header, damage, undisturbed):
    """J9: without it no row is read: the seeds are named, sampled again and give the same bytes."""

    def changed(content):
        at = (content.index if header == "array" else content.rindex)(HEADERS[header])
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    damage("npz", "images.npz", changed)
    done = again("npz", "--verify")
    assert "the images of some seeds are missing or damaged (" in done.stderr
    assert "they are sampled again" in done.stderr
    check_run(Path("out"), undisturbed / "npz")
    assert "nothing to do (sha256 verified)" in again("npz", "--verify").stdout


def test_a_changed_bit_in_an_image(damage, undisturbed):
    damage("png", "000003.png", flipped)
    assert "nothing to do (sizes compared; --verify reads them)" in again("png").stdout
    done = again("png", "--verify")
    assert "missing or damaged (3): they are sampled again" in done.stderr
    check_run(Path("out"), undisturbed / "png")
    assert "nothing to do (sha256 verified)" in again("png", "--verify").stdout


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_of_another_size(change, damage, undisturbed):
    """Noticed without --verify."""
    damage("png", "000005.png", CHANGES[change])
    assert "missing or damaged (5): they are sampled again" in again("png").stderr
    check_run(Path("out"), undisturbed / "png")


def test_a_missing_image_that_is_not_asked_for_is_named(damage):
    damage("png", "000005.png", lambda content: None)
    done = again("png", "--seeds", "0-3")
    assert "the images of the seeds 5 are missing or damaged: add them to --seeds" in done.stderr
    assert "all 4 images exist" in done.stdout and not Path("out/000005.png").exists()


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda content: None, 8),
        (lambda content: b"\0" * len(content), 8),
        (lambda content: content[:-40], 1),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_manifest_is_restored_from_the_images(kind, change, lost, damage, undisturbed):
    """M24: nothing is sampled; the lines give the sha256 as before."""
    damage(kind, "manifest.jsonl", change)
    done = again(kind)
    assert (
        f"manifest.jsonl has lost lines (seeds without one: {lost}): they are restored"
        in done.stderr
    )
    assert files(Path("out")) == files(undisturbed / kind)
    assert json.loads(Path("out/run.json").read_text())["complete"] is True
    listed, before = (
        [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        for folder in (Path("out"), undisturbed / kind)
    )
    for name in ("seed", "file", "sha256", "settings"):
        assert [line[name] for line in listed] == [line[name] for line in before]
    assert "nothing to do" in again(kind).stdout
    assert CliRunner().invoke(merge, ["out", "--dest", "all"]).exit_code == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["000000", "000000/000003.png"])
def test_a_link_among_the_images_is_refused(kind, name, tmp_path, monkeypatch):
    """M13: nothing is written where it points."""
    monkeypatch.chdir(tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    path = Path("out" if kind == "png" else "out/.parts", name)
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    done = CliRunner().invoke(main, [*JOB, "--format", kind, "--subdirs"])
    assert done.exit_code == 2 and "is a link" in done.stderr, done.output
    assert not list(victim.iterdir())

"""What a run writes into its folder, and what it resumes."""

import hashlib
import json
import os
import zipfile

import numpy as np
import pytest
from injection import KINDS
from run_folders import (
    NETWORK,
    SETTINGS,
    Stop,
    batch,
    look,
    metadata,
    run_json,
    sample,
    stopped,
)

from erk.generation.run_folder import RunFolder

# --- what a run writes ----------------------------------------------------------------------


def test_looking_writes_nothing(out):
    assert look(out, [3, 1]).pending == [3, 1]
    assert not out.parent.exists()


def test_files_and_metadata(out):
    assert sample(out, [0, 1, 1000], subdirs=True) == [0, 1, 1000]
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    images = ["000000/000000.png", "000000/000001.png", "001000/001000.png"]
    assert files == [*images, "manifest.jsonl", "run.json"]
    stored = run_json(out)
    assert stored["complete"] is True and stored["images"] == 3 and stored["seeds"] == "0-1,1000"
    assert stored["nfe"] == 15 and stored["network"] == NETWORK
    assert stored["settings"] == {
        "net": "a.pkl", "steps": 8, "precision": "bf16 on cpu", "S_max": "inf",
        "guidance_interval": [0.1, 2.0],
        "format": "png", "subdirs": True,
    }  # fmt: skip


def test_a_manifest_has_a_line_per_image(out):
    sample(out, [5, 3])
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [3, 5]
    sha256 = hashlib.sha256((out / "000003.png").read_bytes()).hexdigest()
    settings = lines[0].pop("settings")
    assert len(settings) == 16
    assert lines[0] == {
        "seed": 3, "file": "000003.png", "sha256": sha256, "batch": 4, "nfe": 15, "guide_nfe": 0,
        "file_size": (out / "000003.png").stat().st_size,
    }  # fmt: skip


def test_archives_replace_the_files(out):
    sample(out, [4, 3], kind="zip")
    assert sorted(os.listdir(out)) == ["images.zip", "manifest.jsonl", "run.json"]
    with zipfile.ZipFile(out / "images.zip") as archive:
        assert archive.namelist() == ["000003.png", "000004.png"]
    assert look(out, [3, 4], kind="zip").pending == []
    with pytest.raises(ValueError, match="is complete with the seeds 3-4"):
        look(out, [3, 4, 5], kind="zip")


def test_archives_do_not_depend_on_the_order_of_seeds(tmp_path):
    sample(tmp_path / "a", [0, 1, 2], kind="zip")
    sample(tmp_path / "b", [2, 0, 1], kind="zip")
    packed = [(tmp_path / name / "images.zip").read_bytes() for name in "ab"]
    assert packed[0] == packed[1]


def test_a_deleted_archive_is_sampled_again(out):
    sample(out, [0, 1], kind="zip")
    before = (out / "images.zip").read_bytes()
    (out / "images.zip").unlink()
    assert sample(out, [0, 1], kind="zip") == [0, 1]
    assert (out / "images.zip").read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "network"),
    [*((kind, {"network": NETWORK}) for kind in KINDS),
     ("png", {"network": None}), ("png", {"network": NETWORK | {"classes": "ten"}})],
)  # fmt: skip
def test_a_grid_shows_the_first_images(kind, network, out):
    """Also of a run whose network is unknown, where it ended in an AttributeError."""
    settings = SETTINGS | {"format": kind, "subdirs": False}
    run = RunFolder(out, settings, [0, 1, 2], metadata([0, 1, 2], **network), grid=True)
    run.labels = "balanced"
    run.look()
    with run:
        run.write(batch([0, 1, 2]))
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_covers_all_sessions(kind, out):
    """NFE is the mean over all images, those of a killed run included; so are batch sizes."""
    run = look(out, range(4), kind=kind)
    with pytest.raises(Stop), run:
        run.write(batch([0], nfe=9, guide_nfe=3))
        raise Stop
    with look(out, range(4), kind=kind) as run:
        run.write(batch(run.pending, size=2, nfe=11, guide_nfe=3))
    stored = run_json(out)
    assert (stored["nfe"], stored["guide_nfe"]) == (10.5, 3)
    assert stored["batches"] == {"2": 3, "4": 1}
    assert stored["rounding"] == (  # M15
        "images of other batch sizes are rounded differently: by up to 34 grey levels in bf16, "
        "measured with the preset digits"
    )
    sample(out.with_name("b"), [0])
    assert "batches" not in run_json(out.with_name("b"))


# --- what is resumed ------------------------------------------------------------------------


def test_a_complete_run_has_nothing_to_do(out):
    sample(out, [0, 1, 2])
    run = look(out, [2, 0])
    assert run.pending == [] and run.is_complete


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on(kind, out):
    stopped(out, [0, 1, 2, 3], 2, kind=kind)
    assert run_json(out)["complete"] is False
    assert sample(out, [0, 1, 2, 3], kind=kind) == [0, 1, 3]
    assert run_json(out)["complete"] is True and run_json(out)["images"] == 4
    if kind == "npz":
        with np.load(out / "images.npz") as file:
            assert file["arr_0"].shape == (4, 4, 4, 1) and file["seeds"].tolist() == [0, 1, 2, 3]


def test_further_seeds_extend_a_run(out):
    sample(out, [0, 1])
    assert sample(out, [1, 2, 5]) == [2, 5]
    assert run_json(out)["seeds"] == "0-2,5" and run_json(out)["images"] == 4
    assert len(list(out.glob("*.png"))) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_that_were_never_sampled_are_not_listed(kind, out):
    """Stopped at seed 5 of 0-9, then asked for 0-2 only: complete means these and 5."""
    stopped(out, range(10), 5, kind=kind)
    assert sample(out, [0, 1, 2], kind=kind) == [0, 1, 2]
    assert run_json(out)["seeds"] == "0-2,5" and run_json(out)["images"] == 4
    if kind == "zip":
        with zipfile.ZipFile(out / "images.zip") as archive:
            assert archive.namelist() == [f"{seed:06d}.png" for seed in (0, 1, 2, 5)]
    if kind == "npz":
        with np.load(out / "images.npz") as file:
            assert file["seeds"].tolist() == [0, 1, 2, 5]
            assert file["arr_0"][:, 0, 0, 0].tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("subdirs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_a_line_is_not_of_the_run(kind, subdirs, out):
    """H12: a foreign file, and one of another size than its line says, are sampled again."""
    run = stopped(out, [0, 1, 2, 3], 0, 1, 2, kind=kind, subdirs=subdirs)
    paths = [run.files.path(seed) for seed in range(4)]
    paths[3].write_bytes(paths[0].read_bytes())
    paths[2].write_bytes(paths[2].read_bytes()[:-3])
    run = look(out, [0, 1, 2, 3], kind=kind, subdirs=subdirs)
    assert run.pending == [2, 3]
    assert "are damaged or not of this run (seeds 2-3)" in run.notices[0]
    assert sample(out, [0, 1, 2, 3], kind=kind, subdirs=subdirs) == [2, 3]
    sample(out.with_name("other"), [0, 1, 2, 3], kind=kind, subdirs=subdirs)
    other = (out.with_name("other") / "manifest.jsonl").read_bytes()
    assert (out / "manifest.jsonl").read_bytes() == other  # with every batch size and NFE


def test_a_line_precedes_its_image(out, monkeypatch):
    """Killed between the two: nothing of the image's record is lost, and the image is pending."""

    def killed(files, record, png):
        raise Stop

    monkeypatch.setattr("erk.generation.archives.ImageFiles.write", killed)
    run = look(out, [0, 1])
    with pytest.raises(Stop), run:
        run.write(batch([0, 1]))
    monkeypatch.undo()
    (log,) = (out / ".parts").glob("*.jsonl")
    assert log.read_bytes().count(b"\n") == 2 and look(out, [0, 1]).pending == [0, 1]
    sample(out, [0, 1])
    assert run_json(out)["nfe"] == 15


def test_a_draft_is_not_an_image(out):
    stopped(out, [0, 1])
    (out / ".000001.png.77aa.tmp").write_bytes(b"part")
    assert look(out, [0, 1]).pending == [0, 1]


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_drafts_of_killed_processes_are_removed(kind, out):
    stopped(out, [0, 1], kind=kind)
    ours = [out / ".000001.png.0123abcd.tmp", out / ".run.json.0123abcd.tmp",
            out / ".images.zip.0123abcd.tmp"]  # fmt: skip
    others = [out / ".cache.tmp", out / ".report.pdf.0123abcd.tmp", out / "000001.png.77.tmp"]
    for draft in (*ours, *others):
        draft.write_bytes(b"part")
    sample(out, [0, 1], kind=kind)
    assert not any(draft.exists() for draft in ours)
    assert all(other.exists() for other in others)


def test_a_plan_resumes_a_run_whose_images_all_exist(out):
    """No network is loaded for it: metadata is that of the run."""
    stopped(out, [0, 1], 0, 1)
    settings = SETTINGS | {"format": "png", "subdirs": False}
    run = RunFolder(out, settings, [0, 1])
    run.look()
    with run:
        assert run.pending == []
    assert run_json(out)["complete"] is True and run_json(out)["network"] == NETWORK
    run = RunFolder(out, settings, [0, 1, 2])
    run.look()
    with pytest.raises(ValueError, match="the networks are not loaded"), run:
        pass

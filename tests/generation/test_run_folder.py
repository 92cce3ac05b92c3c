"""A run's folder: what it refuses, what it resumes and what it leaves behind."""

import hashlib
import json
import os
import zipfile

import numpy as np
import pytest
import torch

from erk.generation.run_folder import RunFolder
from erk.generation.sampling import ImageBatch
from erk.generation.seeds import format_seeds

SETTINGS = {"net": "a.pkl", "steps": 8, "precision": "bf16 on cpu",
            "S_max": float("inf"), "guidance_interval": (0.1, 2.0)}
NETWORK = {"name": "a", "sha256": "1" * 64, "licence": "free"}
KINDS = ["png", "zip", "npz"]


def metadata(seeds, **others):
    values = {"seeds": format_seeds(seeds), "batch": 4, "network": NETWORK, "guide": None}
    return values | others


def look(path, seeds, kind="png", subdirs=False, network=NETWORK, **settings):
    """The folder of a run that samples these seeds, looked at."""
    settings = SETTINGS | {"format": kind, "subdirs": subdirs} | settings
    run = RunFolder(path, settings, list(seeds), metadata(seeds, network=network), batch=4)
    run.look()
    return run


def batch(seeds, size=4, nfe=15, guide_nfe=0):
    """A batch of images; all pixels of one are seed mod 256."""
    images = [torch.full((1, 4, 4), seed % 256, dtype=torch.uint8) for seed in seeds]
    return ImageBatch(list(seeds), torch.stack(images), None, nfe, guide_nfe, size)


def sample(path, seeds, **options):
    """A run from start to end; returns the seeds that were pending."""
    with look(path, seeds, **options) as run:
        pending = run.pending
        if pending:
            run.write(batch(pending))
    return pending


class Stop(KeyboardInterrupt):
    """A user's Ctrl+C."""


def stopped(path, seeds, *done, **options):
    """A run of `seeds` that was stopped after the images of `done`."""
    run = look(path, seeds, **options)
    with pytest.raises(Stop), run:
        if done:
            run.write(batch(done))
        raise Stop
    return run


def run_json(path):
    return json.loads((path / "run.json").read_text())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs" / "out"


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_shows_the_first_images(kind, out):
    settings = SETTINGS | {"format": kind, "subdirs": False}
    run = RunFolder(out, settings, [0, 1, 2], metadata([0, 1, 2]), grid=True)
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
    assert "2 images in" in run.notices[0] and "(seeds 2-3)" in run.notices[0]
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


# --- what is refused ------------------------------------------------------------------------


def test_a_link_as_the_folder_of_parts_is_refused(out, tmp_path):
    """In a folder from elsewhere: nothing is written where the link points."""
    (tmp_path / "victim").mkdir()
    out.mkdir(parents=True)
    (out / ".parts").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is a link, so the run would read or write elsewhere"):
        look(out, [0, 1])
    assert not list((tmp_path / "victim").iterdir())


def test_other_settings_are_named(out):
    sample(out, [0])
    with pytest.raises(ValueError, match="other settings") as caught:
        look(out, [0], steps=16, S_max=3.0)
    assert "S_max inf there, 3.0 here; steps 8 there, 16 here" in str(caught.value)
    assert "net" not in str(caught.value).partition("(")[2]
    with pytest.raises(ValueError, match="w_stiff None there, 1 here"):
        look(out, [0], w_stiff=1)


def test_another_network_of_the_same_name_is_refused(out):
    sample(out, [0])
    look(out, [0, 1])
    with pytest.raises(ValueError, match="another network of the same file name .*222222222222"):
        look(out, [0, 1], network=NETWORK | {"sha256": "2" * 64})


def test_another_version_of_the_sampler_is_refused(out):
    def opened(version):
        values = metadata([0, 1], sampling_version=version)
        run = RunFolder(out, SETTINGS | {"format": "png", "subdirs": False}, [0, 1], values)
        run.look()
        return run

    with pytest.raises(Stop), opened(1) as run:
        run.write(batch([0]))
        raise Stop
    assert opened(1).pending == [1]
    with pytest.raises(ValueError, match="by version 1 of the sampler, this is version 2"):
        opened(2)


@pytest.mark.parametrize("name", ["000000.png", "000077.png", "sub/photo.png"])
def test_images_of_unknown_settings_are_refused(name, out):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds images but no run\.json"):
        look(out, [0, 1])


def test_a_folder_with_other_files_is_accepted(out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    assert sample(out, [0]) == [0]
    assert (out / "notes.txt").read_text() == "mine"


def test_of_two_runs_that_begin_together_one_wins(out):
    """Both saw an empty folder; the one of other settings, or another network, is refused."""
    first, second, same = (look(out, [0, 1], **s) for s in ({}, {"steps": 9}, {}))
    third = look(out, [0, 1], network=NETWORK | {"sha256": "2" * 64})
    with first:
        with pytest.raises(ValueError, match="steps 8 there, 9 here"), second:
            pass
        with pytest.raises(ValueError, match="another network"), third:
            pass
        with pytest.raises(ValueError, match="in use, another process is sampling into it"), same:
            pass
        first.write(batch([0, 1]))
    assert run_json(out)["settings"]["steps"] == 8 and run_json(out)["complete"] is True


def test_records_of_other_settings_are_refused(out):
    """Someone has put another run.json into the folder, or another run's log."""
    sample(out, [0, 1])
    stored = run_json(out)
    stored["settings"]["steps"] = 9
    (out / "run.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"manifest\.jsonl lists images of other settings"):
        look(out, [0, 1], steps=9)
    (out / "run.json").unlink()
    for path in out.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"holds images but no run\.json"):
        look(out, [0, 1], steps=9)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"settings"', '{"settings": {}}', '{"settings": [], "complete": true}',
     '{"settings": {}, "complete": true}', '{"settings": {}, "complete": true, "seeds": "x"}',
     '{"settings": {}, "complete": true, "seeds": 3}'],
)  # fmt: skip
def test_a_foreign_run_json_is_refused(text, out):
    out.mkdir(parents=True)
    (out / "run.json").write_text(text)
    with pytest.raises(ValueError, match="is not the metadata of a run"):
        look(out, [0])


def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(ValueError, match="cannot write to .*file is not a folder"):
            look(path, [0])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_without_permission_to_write(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not writable"):
        look(tmp_path / "out", [0])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_images_are_named(kind, out):
    run = look(out, [0, 1, 2], kind=kind)
    with pytest.raises(ValueError, match="the images of the seeds 1-2 are missing in"), run:
        run.write(batch([0]))
    assert run_json(out)["complete"] is False


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_a_damaged_image_is_not_packed(kind, out):
    run = stopped(out, [0, 1], 0, 1, kind=kind)
    path = run.files.path(1)
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(ValueError, match=r"the image of seed 1 in .*000001\.png is damaged"):
        sample(out, [0, 1], kind=kind)
    path.unlink()
    assert sample(out, [0, 1], kind=kind) == [1]


# --- what a failed run leaves ---------------------------------------------------------------


def failed(path, seeds, *done, **options):
    """A run that fails after the images of `done`."""
    with pytest.raises(FloatingPointError), look(path, seeds, **options) as run:
        if done:
            run.write(batch(done))
        raise FloatingPointError


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_a_run_that_fails_at_once_leaves_nothing(kind, out):
    failed(out, [0, 1], kind=kind)
    assert not out.exists()


def test_files_of_others_are_kept(out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    failed(out, [0, 1])
    assert os.listdir(out) == ["notes.txt"]


def test_a_run_of_another_process_is_kept(out):
    """It has begun but written no image yet."""
    stopped(out, [0, 1])
    failed(out, [0, 1])
    assert run_json(out)["complete"] is False


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_images_are_kept(kind, out):
    failed(out, [0, 1], 1, kind=kind)
    assert look(out, [0, 1], kind=kind).pending == [0]
    assert run_json(out)["complete"] is False

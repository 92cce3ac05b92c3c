"""What a run refuses in a folder, and what a failed run leaves there."""

import json
import os

import pytest
from injection import KINDS
from run_folders import (
    NETWORK,
    SETTINGS,
    Stop,
    batch,
    failed,
    look,
    metadata,
    run_json,
    sample,
    stopped,
)

from erk.generation.run_folder import RunFolder

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


@pytest.mark.parametrize("name", ["000000.png", "000077.png", "photo.png", "000000/a.png"])
def test_images_of_unknown_settings_are_refused(name, out):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds images but no run\.json"):
        look(out, [0, 1])


def test_a_folder_with_other_files_is_accepted(out):
    """Among them another run's, or the demo's, in a sub-folder."""
    (out / "demo").mkdir(parents=True)
    (out / "demo" / "demo.png").write_bytes(b"")
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

"""A run's folder: what it refuses, what it remembers and what it leaves behind."""

import hashlib
import json
import os
import zipfile

import numpy as np
import pytest
from golden_data import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from erk.generation.run_folder import RunFolder
from erk.generation.seeds import format_seeds, parse_seeds

SETTINGS = {"net": "a.pkl", "steps": 8, "S_max": float("inf"), "guidance_interval": (0.1, 2.0)}
NETWORK = {"name": "a", "sha256": "1" * 64, "licence": "free"}


def picture(seed):
    return np.full((1, 4, 4), seed % 256, np.uint8)


def facts(seeds, **others):
    told = {"seeds": format_seeds(seeds), "batch": 4, "network": NETWORK, "guide": None}
    return told | others


def open_folder(path, kind="png", subdirs=False, **settings):
    return RunFolder(path, kind, subdirs, SETTINGS | settings)


def start(path, seeds, **kwargs):
    """A run of `seeds` up to the point where the first picture is written."""
    folder = open_folder(path, **kwargs)
    pending = folder.check(seeds)
    folder.check_networks(facts(seeds))
    folder.begin(facts(seeds))
    return folder, pending


def add(folder, *seeds, batch=4):
    """Write the pictures of seeds."""
    folder.add(seeds, [picture(seed) for seed in seeds], batch=batch, nfe=15, guide_nfe=0)


def make(path, seeds, **kwargs):
    """A whole run; returns the seeds that it had to make."""
    folder, pending = start(path, seeds, **kwargs)
    add(folder, *pending)
    folder.finish()
    return pending


def record(path):
    return json.loads((path / "run.json").read_text())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs" / "out"


def test_check_writes_nothing(out):
    assert open_folder(out).check([3, 1]) == [3, 1]
    assert not out.parent.exists()


def test_a_link_in_place_of_our_own_folder_is_refused(out, tmp_path):
    """Of a folder that came from elsewhere: nothing is written where it points."""
    (tmp_path / "victim").mkdir()
    out.mkdir(parents=True)
    (out / ".parts").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is a link, so the run would write elsewhere"):
        start(out, [0, 1])
    assert not list((tmp_path / "victim").iterdir())


def test_files_and_record(out):
    assert make(out, [0, 1, 1000], subdirs=True) == [0, 1, 1000]
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    pictures = ["000000/000000.png", "000000/000001.png", "001000/001000.png"]
    assert files == [*pictures, "manifest.jsonl", "run.json"]
    found = record(out)
    assert found["complete"] is True and found["images"] == 3 and found["seeds"] == "0-1,1000"
    assert found["nfe"] == 15 and found["network"] == NETWORK
    assert found["settings"] == {
        "net": "a.pkl", "steps": 8, "S_max": "inf", "guidance_interval": [0.1, 2.0]
    }  # fmt: skip


def test_a_finished_run_has_nothing_to_do(out):
    make(out, [0, 1, 2])
    folder = open_folder(out)
    assert folder.check([2, 0]) == [] and folder.record["complete"]


def test_a_stopped_run_goes_on(out):
    folder, _ = start(out, [0, 1, 2, 3])
    add(folder, 2)
    assert record(out)["complete"] is False
    assert make(out, [0, 1, 2, 3]) == [0, 1, 3]
    assert record(out)["complete"] is True and record(out)["images"] == 4


def test_union_of_seeds(out):
    make(out, [0, 1])
    assert make(out, [1, 2, 5]) == [2, 5]
    assert record(out)["seeds"] == "0-2,5" and record(out)["images"] == 4
    assert len(list(out.glob("*.png"))) == 4


@pytest.mark.parametrize("kind", ["png", "zip", "npz"])
def test_seeds_that_were_never_made_are_not_listed(kind, out):
    """Stopped at seed 5 of 0-9, then asked for 0-2 only: complete means these and 5."""
    folder, _ = start(out, range(10), kind=kind)
    add(folder, 5)
    assert make(out, [0, 1, 2], kind=kind) == [0, 1, 2]
    assert record(out)["seeds"] == "0-2,5" and record(out)["images"] == 4
    if kind == "zip":
        with zipfile.ZipFile(out / "images.zip") as archive:
            assert archive.namelist() == [f"{seed:06d}.png" for seed in (0, 1, 2, 5)]
    if kind == "npz":
        with np.load(out / "images.npz") as file:
            assert file["seeds"].tolist() == [0, 1, 2, 5]
            assert file["arr_0"][:, 0, 0, 0].tolist() == [0, 1, 2, 5]


def test_other_settings_are_named(out):
    make(out, [0])
    with pytest.raises(ValueError, match="other settings") as caught:
        open_folder(out, steps=16, S_max=3.0).check([0])
    assert "S_max inf there, 3.0 here; steps 8 there, 16 here" in str(caught.value)
    assert "net" not in str(caught.value).partition("(")[2]
    with pytest.raises(ValueError, match="w_stiff None there, 1 here"):
        open_folder(out, w_stiff=1).check([0])


def test_another_network_of_the_same_name_is_refused(out):
    make(out, [0])
    folder = open_folder(out)
    folder.check([0, 1])
    folder.check_networks(facts([0, 1]))
    other = facts([0, 1], network=NETWORK | {"sha256": "2" * 64})
    with pytest.raises(ValueError, match="another network of the same file name .*222222222222"):
        folder.check_networks(other)


@pytest.mark.parametrize("name", ["000000.png", "000077.png", "sub/photo.png"])
def test_pictures_of_others_are_refused(name, out):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"")
    with pytest.raises(ValueError, match="holds pictures but no run.json"):
        open_folder(out).check([0, 1])


def test_a_folder_with_other_things_is_welcome(out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    assert make(out, [0]) == [0]
    assert (out / "notes.txt").read_text() == "mine"


def test_of_two_runs_that_begin_together_one_wins(out):
    """Both found an empty folder; the one of other settings, or another network, is refused."""
    first, second, third, same = (open_folder(out, **s) for s in ({}, {"steps": 9}, {}, {}))
    for folder in (first, second, third, same):
        assert folder.check([0, 1]) == [0, 1]
        folder.check_networks(facts([0, 1]))
    first.begin(facts([0, 1]))
    with pytest.raises(ValueError, match="steps 8 there, 9 here"):
        second.begin(facts([0, 1]))
    with pytest.raises(ValueError, match="another network"):
        third.begin(facts([0, 1], network=NETWORK | {"sha256": "2" * 64}))
    same.begin(facts([0, 1]))
    add(same, 0, 1)
    same.finish()
    assert record(out)["settings"]["steps"] == 8 and record(out)["complete"] is True


def test_lines_of_other_settings_are_refused(out):
    """Someone has put another run.json into the folder, or another run's parts."""
    make(out, [0, 1])
    found = record(out)
    found["settings"]["steps"] = 9
    (out / "run.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="manifest.jsonl lists pictures of other settings"):
        open_folder(out, steps=9).check([0, 1])
    (out / "run.json").unlink()
    for place in out.glob("*.png"):
        place.unlink()
    with pytest.raises(ValueError, match="holds pictures but no run.json"):
        open_folder(out, steps=9).check([0, 1])


@pytest.mark.parametrize("subdirs", [False, True])
def test_whole_pictures_without_a_line_are_taken_in_others_made_anew(subdirs, out):
    """Killed between a picture and its line; or put there by someone, in part."""
    folder, _ = start(out, [0, 1, 2, 3], subdirs=subdirs)
    add(folder, 0, 1, 2, 3)
    (manifest,) = (out / ".parts").glob("*.jsonl")
    manifest.write_bytes(manifest.read_bytes().splitlines(keepends=True)[0])
    half = folder.path(2).read_bytes()[:-3]
    folder.path(2).write_bytes(half)
    before = folder.path(1).stat().st_mtime_ns
    assert make(out, [0, 1, 2, 3], subdirs=subdirs) == [2]
    assert folder.path(1).stat().st_mtime_ns == before
    listed = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in listed] == [4, None, 4, None]
    assert [line["sha256"] for line in listed] == [
        hashlib.sha256(folder.path(seed).read_bytes()).hexdigest() for seed in range(4)
    ]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"settings"', '{"settings": {}}', '{"settings": [], "complete": true}',
     '{"settings": {}, "complete": true}', '{"settings": {}, "complete": true, "seeds": "x"}',
     '{"settings": {}, "complete": true, "seeds": 3}'],
)  # fmt: skip
def test_a_foreign_run_json_is_refused(text, out):
    out.mkdir(parents=True)
    (out / "run.json").write_text(text)
    with pytest.raises(ValueError, match="is not the record of a run"):
        open_folder(out).check([0])


def test_archives_replace_the_pictures(out):
    make(out, [4, 3], kind="zip")
    assert sorted(os.listdir(out)) == ["images.zip", "manifest.jsonl", "run.json"]
    with zipfile.ZipFile(out / "images.zip") as archive:
        assert archive.namelist() == ["000003.png", "000004.png"]
    assert open_folder(out, kind="zip").check([3, 4]) == []
    with pytest.raises(ValueError, match="is finished with the seeds 3-4"):
        open_folder(out, kind="zip").check([3, 4, 5])


def test_a_stopped_archive_goes_on(out):
    folder, _ = start(out, [0, 1, 2], kind="npz")
    add(folder, 1)
    assert make(out, [0, 1, 2], kind="npz") == [0, 2]
    with np.load(out / "images.npz") as file:
        assert file["arr_0"].shape == (3, 4, 4, 1) and file["seeds"].tolist() == [0, 1, 2]


def test_archives_do_not_depend_on_the_order_of_seeds(tmp_path):
    make(tmp_path / "a", [0, 1, 2], kind="zip")
    make(tmp_path / "b", [2, 0, 1], kind="zip")
    packed = [(tmp_path / name / "images.zip").read_bytes() for name in "ab"]
    assert packed[0] == packed[1]


def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(ValueError, match="cannot write to .*file is not a folder"):
            open_folder(place).check([0])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_without_the_right_to_write(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not writable"):
        open_folder(tmp_path / "out").check([0])


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_abandon_leaves_nothing(kind, out):
    folder, _ = start(out, [0, 1], kind=kind)
    folder.abandon()
    assert not out.exists()


def test_abandon_keeps_what_others_wrote(out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    start(out, [0, 1])[0].abandon()
    assert os.listdir(out) == ["notes.txt"]


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_abandon_keeps_pictures(kind, out):
    folder, _ = start(out, [0, 1], kind=kind)
    add(folder, 1)
    folder.abandon()
    assert open_folder(out, kind=kind).check([0, 1]) == [0]
    assert record(out)["complete"] is False


@pytest.mark.parametrize("kind", ["png", "zip"])
def test_stray_files_of_killed_processes_go(kind, out):
    folder, _ = start(out, [0, 1], kind=kind)
    ours = [folder.path(1).with_name(".000001.png.77.tmp"), out / ".run.json.77.tmp",
            out / ".images.zip.77.tmp"]  # fmt: skip
    others = [out / ".cache.tmp", out / ".report.pdf.77.tmp", out / "000001.png.77.tmp"]
    for stray in (*ours, *others):
        stray.write_bytes(b"part")
    make(out, [0, 1], kind=kind)
    assert not any(stray.exists() for stray in ours)
    assert all(other.exists() for other in others)


def test_a_temporary_file_is_no_picture(out):
    folder, _ = start(out, [0, 1])
    (out / ".000001.png.77.tmp").write_bytes(b"part")
    assert open_folder(out).check([0, 1]) == [0, 1]


@pytest.mark.parametrize("kind", ["png", "zip", "npz"])
def test_evaluations_and_batch_sizes_of_all_sessions_are_told(kind, out):
    """NFE is the mean over all pictures, those of a run that was killed too."""
    folder, _ = start(out, range(4), kind=kind)
    folder.add([0], [picture(0)], batch=4, nfe=9, guide_nfe=3)
    folder, pending = start(out, range(4), kind=kind)
    folder.add(pending, [picture(seed) for seed in pending], batch=2, nfe=11, guide_nfe=3)
    folder.finish()
    found = record(out)
    assert (found["nfe"], found["guide_nfe"]) == (10.5, 3)
    assert found["batches"] == {"2": 3, "4": 1} and "at most 1 grey level" in found["rounding"]
    assert "batches" not in (make(out.with_name("b"), [0]), record(out.with_name("b")))[1]


@given(st.lists(st.integers(0, 60), min_size=1, unique=True))
def test_seeds_as_text_and_back(seeds):
    text = format_seeds(seeds)
    assert parse_seeds(text) == sorted(seeds)
    assert format_seeds(parse_seeds(text)) == text
    parts = len(text.split(","))
    assert parts == sum(seed - 1 not in seeds for seed in seeds)


def test_seed_lists_as_the_originals_read_them():
    cases = json.loads((GOLDEN / "ref" / "rng.json").read_text())["parse_int_list"]
    assert {text: parse_seeds(text) for text in cases} == cases
    assert parse_seeds(" 3 , 5-6") == [3, 5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not a list of seeds"), (",", "is not a list"), ("1,,2", "is not a list"),
     ("a", "'a' is not a list"), ("1-", "is not a list"), ("-1", "is not a list"),
     ("1.5", "is not a list"), ("1-2-3", "is not a list"), ("0x10", "is not a list"),
     ("5-3", "runs backwards; write 3-5"), ("1,1", "names a seed twice"),
     ("0-9,9", "names a seed twice")],
)  # fmt: skip
def test_malformed_seed_lists(text, message):
    with pytest.raises(ValueError, match=message):
        parse_seeds(text)

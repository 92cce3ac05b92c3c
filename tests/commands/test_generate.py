"""`erk generate` and the files that it writes: images, records, resumed runs, options."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import ONE_THREAD, ROOT, SMALL, files, finish, record, start
from PIL import Image

from erk.models.presets import presets


def test_list_presets_is_whole_when_piped():
    command = [sys.executable, "generate.py", "--list-presets"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"COLUMNS": "40"})  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and [line.split()[0] for line in lines] == [*presets()]
    for line, preset in zip(lines, presets().values(), strict=True):
        assert f"net={preset.net.rpartition('/')[2]}" in line and "…" not in line
        assert preset.gnet is None or preset.gnet.rpartition("/")[2] in line
        assert preset.metric is None or preset.metric in line


@pytest.fixture(scope="module")
def two_commands(tmp_path_factory):
    """The README's two commands, one after the other, in an empty folder."""
    folder = tmp_path_factory.mktemp("two")
    written = finish(start(folder, "--preset", "digits", "--seeds", "0-63", "--outdir", "out"))
    command = [sys.executable, ROOT / "evaluate.py", "--ref", "digits"]
    judged = subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True)
    return folder, written, judged


def test_readme_commands(two_commands):
    folder, (out, _), judged = two_commands
    assert out.splitlines()[-1] == "out: 64 images, NFE 63 per image."
    names = [f"{seed:06d}.png" for seed in range(64)]
    assert sorted(os.listdir(folder / "out")) == [*names, "manifest.jsonl", "run.json"]
    with Image.open(folder / "out" / "000063.png") as image:
        assert image.size == (8, 8) and image.mode == "L"
    assert judged.returncode == 0, judged.stderr
    row = json.loads((folder / "results" / "out-digits.json").read_text())
    assert row["n"] == 64 and row["seeds"] == "0-63" and 0 < row["fd"] < 60
    assert row["run"]["nfe"] == 63 and row["run"]["settings"]["w_stiff"] == 0


def test_run_json(two_commands):
    content = record(two_commands[0] / "out")
    card = json.loads((ROOT / "checkpoints" / "digits.json").read_text())
    assert content["network"]["sha256"] == card["sha256"]
    assert Path(content["network"]["name"]).stem == "digits"
    assert content["guide"] is None and content["nfe"] == 63 and content["guide_nfe"] == 0
    assert (content["complete"], content["seeds"], content["images"]) == (True, "0-63", 64)
    assert content["versions"]["torch"] == torch.__version__ and content["device"]
    assert content["command"] == "generate.py --preset digits --seeds 0-63 --outdir out"
    assert content["batch"] == 32 and content["processes"] == 1
    settings = content["settings"]
    assert settings["net"] == "digits.safetensors" and settings["gnet"] is None
    assert settings["S_max"] == "inf" and settings["labels"] == "random"
    wanted = {"solver": "heun", "schedule": "edm", "steps": 32, "sigma_min": 0.002,
              "sigma_max": 80.0, "rho": None, "guidance": 1.0, "w_stiff": 0.0, "w_con": 0.5,
              "format": "png", "precision": "auto on cpu", "class": None}  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert (content["commit"] or "").removesuffix("-dirty") == commit.stdout.strip()


def test_again_writes_nothing_and_more_seeds_extend(generate):
    first = generate(*SMALL, "--seeds", "0-5")
    assert first.exit_code == 0 and "6 images, NFE 5" in first.stdout
    out = Path("out")
    for path in out.iterdir():
        os.utime(path, (1e9, 1e9))
    again = generate(*SMALL, "--seeds", "0-5")
    assert again.exit_code == 0 and "all 6 images exist; nothing to do" in again.stdout
    assert {path.stat().st_mtime for path in out.iterdir()} == {1e9}
    assert generate(*SMALL, "--seeds", "4-8").exit_code == 0
    new = sorted(path.name for path in out.iterdir() if path.stat().st_mtime != 1e9)
    assert new == ["000006.png", "000007.png", "000008.png", "manifest.jsonl", "run.json"]
    assert record(out)["seeds"] == "0-8" and record(out)["images"] == 9
    (out / "000002.png").unlink()
    old = (out / "000001.png").read_bytes()
    assert generate(*SMALL, "--seeds", "0-8").exit_code == 0
    assert generate(*SMALL, "--seeds", "8,7,6,5,4,3,2,1,0", "--outdir", "b").exit_code == 0
    assert files(out) == files(Path("b")) and (out / "000001.png").read_bytes() == old


def test_a_run_stopped_before_its_last_words_is_completed(generate):
    """All images exist, the record is not finished: it still knows the counted NFE."""
    assert generate(*SMALL, "--seeds", "0-3").exit_code == 0
    unfinished = record(Path("out")) | {"complete": False}
    Path("out/run.json").write_text(json.dumps(unfinished))
    done = generate(*SMALL, "--seeds", "0-3")
    assert done.exit_code == 0 and "4 images, NFE 5" in done.stdout
    assert record(Path("out"))["complete"] is True


def test_subdirs_grid_and_formats(generate):
    some = [*SMALL, "--seeds", "0,999-1001"]
    assert generate(*some, "--subdirs", "--grid", "--outdir", "png").exit_code == 0
    images = ["000000/000000.png", "000000/000999.png", "001000/001000.png", "001000/001001.png"]
    written = files(Path("png"))
    assert list(written) == [*images, "grid.png"]
    with Image.open("png/grid.png") as image:
        assert image.width == 2 * (16 * 8 + 4) + 9  # enlarged to 128 pixels, each with its seed
    assert generate(*some, "--subdirs", "--format", "zip", "--outdir", "zip").exit_code == 0
    assert sorted(os.listdir("zip")) == ["images.zip", "manifest.jsonl", "run.json"]
    with zipfile.ZipFile("zip/images.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: written[name] for name in images
        }
    assert generate(*some, "--format", "npz", "--grid", "--outdir", "npz").exit_code == 0
    assert sorted(os.listdir("npz")) == ["grid.png", "images.npz", "manifest.jsonl", "run.json"]
    with np.load("npz/images.npz") as file:
        assert file["seeds"].tolist() == [0, 999, 1000, 1001]
        with Image.open("png/001000/001001.png") as image:
            assert (file["arr_0"][3, :, :, 0] == np.asarray(image)).all()
    again = generate(*some, "--format", "npz", "--outdir", "npz")
    assert again.exit_code == 0 and "nothing to do" in again.stdout


def test_a_grid_can_be_asked_for_later(generate):
    assert generate(*SMALL, "--seeds", "0-3").exit_code == 0
    assert generate(*SMALL, "--seeds", "0-3", "--grid").exit_code == 0
    assert Path("out/grid.png").is_file()


def test_original_spellings(generate):
    done = generate(*SMALL, "--seeds", "0-1", "--w_stiff", "0.5", "--w_con", ".3", "--sigma_min",
                    "0.01", "--sigma_max", 50)  # fmt: skip
    assert done.exit_code == 0, done.output
    settings = record(Path("out"))["settings"]
    assert [settings[n] for n in ("w_stiff", "w_con", "sigma_min", "sigma_max")] == [
        0.5, 0.3, 0.01, 50
    ]  # fmt: skip
    churned = generate(*SMALL, "--seeds", "0-1", "--S_churn", "2", "--S_min", "0.1", "--S_max",
                       "40", "--S_noise", "1.01", "--outdir", "b")  # fmt: skip
    assert churned.exit_code == 0, churned.output
    settings = record(Path("b"))["settings"]
    assert [settings[f"S_{n}"] for n in ("churn", "min", "max", "noise")] == [2, 0.1, 40, 1.01]
    assert files(Path("out")) != files(Path("b"))


def test_guides_and_their_interval(generate):
    cards = ROOT / "checkpoints"
    paths = ["--net", cards / "digits.safetensors", "--gnet", cards / "digits-weak.safetensors"]
    some = ["--seeds", "0-3", "--steps", "8", "--device", "cpu"]
    assert generate(*paths, *some, "--guidance", "1.25", "--outdir", "a").exit_code == 0
    assert generate("--preset", "digits-autog", *some, "--outdir", "b").exit_code == 0
    assert files(Path("a")) == files(Path("b"))
    content = record(Path("a"))
    assert (content["nfe"], content["guide_nfe"]) == (15, 15)
    card = json.loads((cards / "digits-weak.json").read_text())
    assert content["guide"]["sha256"] == card["sha256"]
    within = generate("--preset", "digits-autog", *some, "--guidance-interval", "0.1,2.0",
                      "--outdir", "c")  # fmt: skip
    assert within.exit_code == 0, within.output
    content = record(Path("c"))
    assert content["settings"]["guidance_interval"] == [0.1, 2.0]
    assert content["nfe"] == 15 and 0 < content["guide_nfe"] < 15
    off = generate("--preset", "digits-autog", *some, "--guidance", "1",
                   "--guidance-interval", "0.1,2.0", "--outdir", "d")  # fmt: skip  # J: a sweep
    assert off.exit_code == 0 and record(Path("d"))["guide"] is None
    assert len({files(Path(name))["000000.png"] for name in "bcd"}) == 3


def test_rules_of_guidance(generate):
    """M5: the options reach the samples and the metadata, and a run goes on with the same ones."""
    some = ["--preset", "digits-cfg", "--seeds", "0-1", "--steps", "4", "--device", "cpu"]
    rules = {
        "cfg": [],
        "apg": ["--guidance-kind", "apg", "--apg-eta", "0.5", "--apg-threshold", "2"],
        "same": ["--guidance-kind", "apg", "--apg-eta", "1"],
        "cfg++": ["--guidance-kind", "cfg++", "--guidance", "0.6"],
    }
    for name, options in rules.items():
        done = generate(*some, *options, "--outdir", name)
        assert done.exit_code == 0, done.output
    settings = record(Path("apg"))["settings"]
    assert [settings[name] for name in ("guidance_kind", "apg_eta", "apg_threshold")] == [
        "apg", 0.5, 2.0
    ]  # fmt: skip
    assert "guidance_kind" not in record(Path("cfg"))["settings"]
    images = {name: files(Path(name))["000000.png"] for name in rules}
    assert images["cfg"] == images["same"] and len({*images.values()}) == 3
    refused = generate(*some, "--outdir", "apg")
    assert refused.exit_code == 2 and "guidance_kind" in refused.output


def test_labels(generate):
    Path("labels.txt").write_text("0 7\n1,7\n2 3\n9 9\n")
    runs = {"file": ["--labels", "labels.txt"], "class": ["--class", "7"],
            "balanced": ["--labels", "balanced"], "random": []}  # fmt: skip
    for name, options in runs.items():
        done = generate(*SMALL, "--seeds", "0-2", *options, "--outdir", name)
        assert done.exit_code == 0, done.output
    written = {name: files(Path(name)) for name in runs}
    same = {seed: written["file"][f"{seed:06d}.png"] == written["class"][f"{seed:06d}.png"]
            for seed in range(3)}  # fmt: skip
    assert same == {0: True, 1: True, 2: False}
    assert len({sample_images["000000.png"] for sample_images in written.values()}) >= 2
    content = hashlib.sha256(Path("labels.txt").read_bytes()).hexdigest()
    assert record(Path("file"))["settings"]["labels"] == f"file {content}"
    assert record(Path("class"))["settings"]["class"] == 7


@pytest.mark.parametrize(("preset", "seeds", "grid"), [
    ("digits", "0-63", True), ("edm2-img512-s", "0-49999", False)])  # fmt: skip
def test_the_default_seeds_are_64_of_an_embedded_network(
    generate, monkeypatch, preset, seeds, grid
):
    """Friction 6: erk generate --preset digits asks nothing and shows what it made."""
    seen = []
    monkeypatch.setattr("erk.generation.run.run", lambda **options: seen.append(options))
    done = generate("--preset", preset)
    assert done.exit_code == 0 and f"images, seeds {seeds}; --seeds chooses others" in done.stderr
    assert (seen[0]["seeds"], seen[0]["grid"]) == (seeds, grid)
    quiet = generate("--preset", preset, "--seeds", "0-1")
    assert quiet.stderr == "" and (seen[1]["seeds"], seen[1]["grid"]) == ("0-1", False)
    refused = generate("--preset", preset, "--grid", "--evaluate", "digits")
    assert refused.exit_code == 2 and "--grid needs images on the disk" in refused.stderr


def test_a_grid_names_seeds_and_classes(generate, monkeypatch):
    from erk.generation import run_folder

    shown, draw = [], run_folder.grid
    monkeypatch.setattr(
        run_folder, "grid", lambda *sheet: [shown.append(sheet[1]), draw(*sheet)][1]
    )
    for labels in ("balanced", "random"):
        assert generate(*SMALL, "--seeds", "9-11", "--labels", labels, "--grid",
                        "--outdir", labels).exit_code == 0  # fmt: skip
    assert shown == [["9: class 9", "10: class 0", "11: class 1"], ["seed 9", "seed 10", "seed 11"]]

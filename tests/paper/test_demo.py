"""The demo at a tiny size, and the networks that come with the repository."""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from erk import load_model
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.models.presets import find_preset
from metrics.extractors import load_extractor
from scripts.paper import demo as demo_script
from scripts.paper.demo import SAMPLERS, sample_row

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of results and the printed text; 40 images per row, sampled by this process."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_script, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
        options = ["--seeds", "0-39", "--groups", "2", "--results", str(folder / "results")]
        done = CliRunner().invoke(demo_script.main, options)
    assert done.exit_code == 0, done.output
    return folder / "results", done.stdout


def test_demo_writes_three_files(demo):
    folder, printed = demo
    assert sorted(os.listdir(folder)) == ["demo.json", "demo.md", "demo.png"]
    assert "demo.md" in printed and "ERK-Guid" in printed and "FD floor" in printed


def test_demo_rows(demo):
    rows = json.loads((demo[0] / "demo.json").read_text())["rows"]
    assert [(row["sampler"], row["NFE"]) for row in rows] == [
        (name, 2 * options["steps"] - 1) for name, options in SAMPLERS
    ]
    for row in rows:
        for name in ("FD", "precision", "recall", "IS", "accuracy"):
            assert math.isfinite(row[name]) and math.isfinite(row[f"{name}_se"]), (name, row)
        assert row["FD"] > 0 and 1 <= row["IS"] <= 10
        assert all(0 <= row[name] <= 1 for name in ("precision", "recall", "accuracy"))
        change = row["change of FD"]
        assert (change is None) == (row is rows[0])
        assert change is None or change == pytest.approx(row["FD"] - rows[0]["FD"])
    assert len({row["FD"] for row in rows}) == len(rows)


def test_demo_table_says_what_the_rows_say(demo):
    text = (demo[0] / "demo.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = json.loads((demo[0] / "demo.json").read_text())["rows"]
    assert [row[0] for row in cells] == [name for name, _ in SAMPLERS]
    for shown, row in zip(cells, rows, strict=True):
        assert int(shown[1]) == row["NFE"]
        assert float(shown[2].split("±")[0]) == pytest.approx(row["FD"], abs=row["FD_se"])
    assert "40 images per row (seeds 0-39, balanced labels" in text
    assert "![demo](demo.png)" in text and "FD floor" in text


def test_demo_image(demo):
    with Image.open(demo[0] / "demo.png") as image:
        low, high = image.convert("L").getextrema()
        assert image.width > image.height > 200 and (low, high) == (0, 255)


def test_rows_of_the_demo_come_from_the_same_seeds():
    """Auto and plain give nearly the same digit for a seed, and other digits for other seeds."""
    seeds = list(range(20))
    rows = [sample_row(SAMPLERS[i][1], seeds) for i in (0, 2)]
    assert rows[0][1] == rows[1][1] == [seed % 10 for seed in seeds]
    a, b = (torch.from_numpy(images).float() for images, _, _ in rows)
    self_difference = (a - b).abs().mean((1, 2, 3))
    others = (a - b.roll(10, 0)).abs().mean((1, 2, 3))  # same class, another seed
    assert self_difference.max() > 0 and (self_difference < others).float().mean() >= 0.8


def test_samples_are_recognised():
    """Measured on these seeds: 0.976 of all, 0.94 of the worst classes (7 and 8)."""
    preset, extractor = find_preset("digits-autog"), load_extractor("digits")
    assert preset.gnet is not None
    settings = Settings(steps=16, guidance=preset.guidance)
    batches = list(
        generate(
            Job(
                load_model(preset.net), settings, load_model(preset.gnet), range(5000, 5500),
                labels="balanced", batch=100,
            )
        )
    )  # fmt: skip
    logits = extractor(torch.cat([batch.wait() for batch in batches])).logits
    classes = torch.cat([batch.classes for batch in batches])
    assert classes.bincount().tolist() == [50] * 10
    right = logits.argmax(1) == classes
    assert right.float().mean() >= 0.95
    assert min(right[classes == c].float().mean().item() for c in range(10)) >= 0.8


def test_checkpoints_are_small():
    total = sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file())
    assert total < 8_000_000


def test_every_checkpoint_has_its_card():
    weights = sorted(CHECKPOINTS.glob("*.safetensors"))
    assert {path.stem for path in weights} >= {
        "digits", "digits-weak", "digits-uncond", "digits-classifier"
    }  # fmt: skip
    for path in weights:
        card = json.loads(path.with_suffix(".json").read_text())
        assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), path.name
        assert card["licence"] == "Apache-2.0" and card["architecture"]["class"]
        assert card["source"] and card["training"]["command"].startswith(
            ("python scripts/train_", "python -m scripts.train.")
        )
    named = {path.stem for path in CHECKPOINTS.iterdir() if path.suffix != ".md"}
    assert named == {path.stem for path in weights}


def test_the_demo_writes_no_tracked_file():  # N9: every later commit said -dirty
    (folder,) = [one.default for one in demo_script.main.params if one.name == "results"]
    assert Path(folder).relative_to(demo_script.ROOT).as_posix() == "out/demo"
    assert "/out*/" in (demo_script.ROOT / ".gitignore").read_text("utf-8").splitlines()

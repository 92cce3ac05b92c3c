"""The paper's protocol from end to end: evaluate.py --ref imagenet512 with random networks."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from erk.commands.evaluate import main
from metrics.distances import frechet_distance, inception_score
from metrics.extractors import load_extractor
from metrics.features import extract
from metrics.neighbours import precision_recall
from metrics.references import known_references
from metrics.statistics import moments_of

SIZE = 512
INCEPTION = ("--allow-random-weights", "--weights", "inception=random:1")
WEIGHTS = (*INCEPTION, "--weights", "vgg16=random:1")


def sample_images(folder: Path, n: int, seed: int) -> Path:
    """Smooth coloured images of 512x512 pixels."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i in range(n):
        small = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(
            folder / f"{i:06d}.png", compress_level=1
        )
    return folder


def tensors(folder: Path) -> torch.Tensor:
    images = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def put_reference(cache: Path, statistics: dict) -> None:
    """The file of imagenet512, in EDM2's format, where a download would have put it."""
    target = cache / known_references()["imagenet512"].statistics.removeprefix("https://")
    target.parent.mkdir(parents=True)
    content = {"num_images": 50000} | {
        key: {"mu": moments.mean.numpy(), "sigma": moments.cov.numpy()}
        for key, moments in statistics.items()
    }
    target.write_bytes(pickle.dumps(content, protocol=4))


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        return CliRunner().invoke(
            main, ["--ref", "imagenet512", "--offline", "--device", "cpu", *arguments]
        )

    return run


def test_inception_and_vgg(evaluate, tmp_path):
    sample_images(tmp_path / "out", 4, 0)
    sample_images(tmp_path / "real", 5, 1)
    computed = {name: load_extractor(name, weights="random:1") for name in ("inception", "vgg16")}
    real = extract([tensors(tmp_path / "real")], computed)
    own = extract([tensors(tmp_path / "out")], computed)
    moments = moments_of(real.outputs["inception"].features)
    put_reference(tmp_path / "cache", {"fid": moments, "fd_dinov2": moments_of(torch.eye(1024))})

    wanted = ("--metrics", "fid,precision,recall", "--real", "real", "--json", "row.json")
    result = evaluate(*WEIGHTS, *wanted)
    assert result.exit_code == 0, result.output
    row = json.loads(Path("row.json").read_text())
    assert row["protocol"] == "erk-paper" and row["n"] == 4 and row["real_n"] == 5
    assert row["extractors"] == {"inception": "random:1", "vgg16": "random:1"}
    assert row["reference"] == "imagenet512" and row["reference_n"] == 50000
    written = moments_of(own.outputs["inception"].features)
    expected = frechet_distance(
        real=(moments.mean, moments.cov), generated=(written.mean, written.cov)
    )
    assert row["fid"] == pytest.approx(expected, rel=1e-6)
    vgg = {"real": real.outputs["vgg16"].features, "generated": own.outputs["vgg16"].features}
    assert (row["precision"], row["recall"]) == precision_recall(**vgg, k=3)
    for shown in ("RANDOM WEIGHTS", "very probably swapped", "4 images in 2048 dimensions"):
        assert shown in result.output, shown

    without_real = evaluate(*INCEPTION, "--metrics", "fid,precision", "--json", "row.json")
    assert without_real.exit_code == 0, without_real.output
    assert (
        "precision and recall: real images are needed, give them by --real" in without_real.output
    )
    assert json.loads(Path("row.json").read_text())["fid"] == row["fid"]

    refused = evaluate(*WEIGHTS[1:], *wanted)
    assert refused.exit_code == 2 and "random weights measure nothing" in refused.output
    missing = evaluate("--metrics", "fid")
    assert missing.exit_code == 2 and "inception" in missing.output.lower()
    Image.new("RGB", (64, 64)).save(tmp_path / "out" / "000000.png")
    small = evaluate(*INCEPTION, "--metrics", "fid")
    assert small.exit_code == 2 and "64x64 pixels but the reference imagenet512" in small.output


@pytest.mark.slow
def test_all_five_in_one_pass(evaluate, tmp_path):
    sample_images(tmp_path / "out", 12, 0)
    sample_images(tmp_path / "real", 5, 1)
    names = ("inception", "dinov2", "vgg16")
    computed = {name: load_extractor(name, weights="random:1") for name in names}
    real = extract([tensors(tmp_path / "real")], computed)
    own = extract([tensors(tmp_path / "out")], computed)
    keys = {"fid": "inception", "fd_dinov2": "dinov2"}
    moments = {key: moments_of(real.outputs[name].features) for key, name in keys.items()}
    put_reference(tmp_path / "cache", moments)
    result = evaluate(
        *WEIGHTS, "--weights", "dinov2=random:1", "--real", "real", "--json", "row.json"
    )
    assert result.exit_code == 0, result.output
    row = json.loads(Path("row.json").read_text())
    for key, name in keys.items():
        written = moments_of(own.outputs[name].features)
        expected = frechet_distance(
            real=(moments[key].mean, moments[key].cov), generated=(written.mean, written.cov)
        )
        assert row[key] == pytest.approx(expected, rel=1e-5), key
    assert row["is"] == pytest.approx(inception_score(own.outputs["inception"].logits)[0])
    assert 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1

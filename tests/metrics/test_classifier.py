"""The digits classifier: its quantiser, its accuracy, its files."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split

from erk.io.files import sha256_of
from metrics.extractors import classifier, extractor_names, load_extractor, output_sizes
from metrics.extractors.classifier import Classifier, known_classifiers, load, normalise

WEIGHTS = known_classifiers()["digits"].path


def test_all_levels_survive_the_way_through_a_png():
    levels = torch.arange(17)
    stored = (levels * (255 / 16)).to(torch.uint8)
    assert torch.equal(normalise(stored, 16), levels / 8 - 1)


def test_every_byte_goes_to_its_nearest_level():
    result = (normalise(torch.arange(256).to(torch.uint8), 16) + 1) * 8
    nearest = np.abs(np.arange(256)[:, None] - np.arange(17) * 255 / 16).argmin(1)
    assert result.int().tolist() == nearest.tolist()


def test_card_tells_the_accuracy_and_the_network_has_it(extractor, digits):
    card = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert card["training"]["held_out_accuracy"] >= 0.98
    assert card["sha256"] == extractor.sha256
    images, labels = digits
    accuracy = (extractor(images).logits.argmax(1) == labels).float().mean()
    assert accuracy >= card["training"]["held_out_accuracy"]


def test_held_out_accuracy_is_measured_on_digits_never_trained_on(extractor, digits):
    training = json.loads(WEIGHTS.with_suffix(".json").read_text())["training"]
    images, labels = digits
    _, unseen = train_test_split(
        np.arange(len(labels)),
        test_size=training["held_out_share"],
        stratify=labels.numpy(),
        random_state=training["seed"],
    )
    accuracy = (extractor(images[unseen]).logits.argmax(1) == labels[unseen]).double().mean()
    assert round(accuracy.item(), 4) == training["held_out_accuracy"]


def test_features(extractor, digits):
    result = extractor(digits[0][:5])
    assert result.features.shape == (5, extractor.feature_dim) == (5, 64)
    assert result.logits.shape == (5, 10)
    assert result.features.dtype == torch.float32
    assert result.features.min() >= 0


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "RGB images of 8x8 pixels.*as torch-fidelity"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "grey images of 28x28 pixels.*as mnist"),
        (torch.zeros(2, 1, 8, 8), "grey images of 8x8 pixels \\(float32\\).*as torch-fidelity"),
        (torch.zeros(8, 8), "float32 with 2 dimensions"),
    ],
)
def test_other_images_are_refused(extractor, images, said):
    takes = "the digits extractor takes grey images of 8x8 pixels"
    with pytest.raises(ValueError, match=f"{takes} \\(uint8\\), not {said}"):
        extractor(images)


def test_unknown_extractor():
    with pytest.raises(ValueError, match="no extractor 'vgg': choose one of inception, dinov2, "):
        load_extractor("vgg")


def test_random_weights(extractor, digits):
    before = torch.get_rng_state()
    one, two = (load_extractor("digits", weights=f"random:{seed}") for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.sha256, two.sha256, one.feature_dim) == ("random:0", "random:1", 64)
    images, labels = digits
    assert (one(images).logits.argmax(1) == labels).float().mean() < 0.3
    assert not torch.equal(one(images).features, two(images).features)


def test_copied_weights_are_the_same_extractor(extractor, tmp_path):
    for file in (WEIGHTS, WEIGHTS.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    copied = load_extractor("digits", weights=str(tmp_path / WEIGHTS.name))
    assert copied.sha256 == extractor.sha256


def test_missing_and_foreign_weights(tmp_path):
    weights = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="w.safetensors is missing"):
        load("digits", weights=weights)
    shutil.copy(WEIGHTS, weights)
    with pytest.raises(FileNotFoundError, match="w.json is missing"):
        load("digits", weights=weights)
    shutil.copy(WEIGHTS.with_suffix(".json"), tmp_path / "w.json")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="is not the file that its card describes"):
        load("digits", weights=weights)
    (tmp_path / "w.json").write_text("{")
    with pytest.raises(ValueError, match="w.json is not a card"):
        load("digits", weights=weights)


def test_another_classifier_is_a_row_and_two_files(tmp_path, monkeypatch):
    """128 features of 28x28 images, on all 256 levels, without a line of code."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "extractors.yaml").write_text(
        "mnist:\n  weights: mnist.safetensors\n  channels: 1\n  size: 28\n  levels: 255\n"
    )
    (tmp_path / "checkpoints").mkdir()
    kwargs = {"width": 4, "features": 128, "classes": 10}
    path = tmp_path / "checkpoints" / "mnist.safetensors"
    save_file(Classifier(**kwargs, size=28).state_dict(), path)
    card = {"architecture": {"kwargs": kwargs}, "sha256": sha256_of(path)}
    path.with_suffix(".json").write_text(json.dumps(card))
    monkeypatch.setattr(classifier, "data", lambda folder: tmp_path / folder)
    known_classifiers.cache_clear()
    try:
        assert extractor_names()[-1] == "mnist"
        assert output_sizes("mnist") == {"features": 128, "logits": 10}
        images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
        outputs = load_extractor("mnist")(images)
        assert outputs.features.shape == (3, 128) and outputs.logits.shape == (3, 10)
        assert torch.equal(normalise(images, 255), images.float() / 127.5 - 1)
    finally:
        monkeypatch.undo()
        known_classifiers.cache_clear()

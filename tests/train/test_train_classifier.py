"""The digits classifier: training is reproducible, and the metadata is true."""

import hashlib
import json
from dataclasses import replace

import torch
from click.testing import CliRunner

from metrics.extractors.classifier import load
from scripts.train import classifier as script


def test_one_epoch_twice_gives_the_same_weights_and_a_card(tmp_path, monkeypatch):
    monkeypatch.setitem(script.RECIPES, "digits", replace(script.RECIPES["digits"], epochs=1))
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    accuracies = [
        script.train_classifier("digits", script.digits_split(seed), path, seed)
        for path, seed in zip(paths, (0, 0, 1), strict=True)
    ]
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second != other
    card = json.loads(paths[0].with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(first).hexdigest()
    assert card["sha256"] == load("digits", weights=paths[0]).sha256
    assert card["training"]["held_out_accuracy"] == round(accuracies[0], 4) > 0.3
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's seed is untouched
    assert threads == torch.get_num_threads()


def test_held_out_digits_are_not_trained_on():
    images, _ = script.real_images("digits")
    split = script.digits_split(0)
    both = torch.cat([split.images, split.held_out]).flatten(1)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, images.flatten(1).numpy()))
    assert len(split.held_out) == 360 and split.held_out_labels.bincount().min() >= 34


def test_mnist_needs_its_images():
    result = CliRunner().invoke(script.main, ["mnist"])
    assert result.exit_code == 2 and "give --data PATH" in result.output

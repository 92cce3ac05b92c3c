"""The digits classifier: training is reproducible, and the metadata is true."""

import hashlib
import json

import torch

from metrics.extractors.classifier import load
from scripts.train import classifier as script


def test_one_epoch_twice_gives_the_same_weights_and_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "EPOCHS", 1)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    accuracies = [
        script.train_classifier(path, seed) for path, seed in zip(paths, (0, 0, 1), strict=True)
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
    _, labels = script.real_images("digits")
    seen, unseen = script._split(labels, 0)
    assert sorted([*seen.tolist(), *unseen.tolist()]) == list(range(1797))
    assert labels[unseen].bincount().min() >= 34

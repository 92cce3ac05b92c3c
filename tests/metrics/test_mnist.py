"""MNIST is an embedded reference by configuration: classifier, protocol, statistics."""

import pytest
import torch

from metrics import evaluate
from metrics.extractors import load_extractor
from metrics.references import load_reference


@pytest.fixture(scope="module")
def reference():
    return load_reference("mnist", {"mnist": load_extractor("mnist")})


def test_moments_are_of_the_training_set_and_features_of_the_test_set(reference):
    statistics = reference.statistics["mnist"]
    assert statistics.n == 60_000 and statistics.features.shape == (10_000, 128)
    assert torch.equal(
        reference.labels.bincount(),
        torch.tensor([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),  # LeCun's test set
    )
    held_out = statistics.features.double().mean(0)
    spread = statistics.cov.diagonal().sqrt()
    live = spread > 0
    shift = (held_out - statistics.mean)[live] / spread[live]
    assert shift.abs().max() < 0.1  # test and training digits are alike


def test_images_of_another_size_are_refused():
    images = torch.zeros([4, 1, 8, 8], dtype=torch.uint8)
    with pytest.raises(ValueError, match="8x8 pixels but the reference mnist of 28x28"):
        evaluate(images, "mnist")


def test_noise_is_far_from_mnist():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, [64, 1, 28, 28], generator=draw, dtype=torch.uint8)
    values = evaluate(images, "mnist").values
    assert values["fd"] > 100 and values["precision"] < 0.1

"""References: the built-in digits and npz files."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from metrics.references import load_reference


def test_digits(extractor, reference, digits):
    features = extractor(digits[0]).features
    assert (reference.name, reference.n) == ("digits", 1797)
    assert torch.equal(reference.features, features)
    np.testing.assert_allclose(reference.cov, np.cov(features.double().T), atol=1e-10)
    assert reference.labels.bincount().min() >= 174


def test_real_digits_are_the_pixels_of_scikit_learn(digits):
    values = load_digits().images
    assert torch.equal(
        (digits[0][:, 0].float() * 16 / 255).round(), torch.from_numpy(values).float()
    )


def test_npz(tmp_path, extractor, reference):
    path = tmp_path / "mine.npz"
    np.savez(path, mu=reference.mean, sigma=reference.cov, num_images=1797)
    found = load_reference(path, extractor)
    assert (found.name, found.n, found.features) == ("mine", 1797, None)
    assert torch.equal(found.cov, reference.cov)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.savez(path, mu=reference.mean, sigma=reference.cov, features=reference.features)
    found = load_reference(path, extractor)
    assert found.n == 1797
    assert torch.equal(found.features, reference.features)


@pytest.mark.parametrize("name", ["imagenet512", "statistics.pkl", "digit"])
def test_unavailable_references_say_what_there_is(name, extractor):
    with pytest.raises(ValueError, match=f"'{name}' is not available .* digits or a .npz"):
        load_reference(name, extractor)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(64)}, "must hold mu"),
        ({"mu": np.zeros(64), "sigma": np.eye(63)}, r"must be \[D\] and \[D, D\]"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "3 dimensions but the extractor digits has 64"),
        ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "means in .* hold NaN"),
        ({"mu": np.zeros(64), "sigma": np.full((64, 64), np.inf)}, "covariances in .* hold NaN"),
        ({"mu": np.zeros(64), "sigma": np.eye(64), "features": np.zeros((9, 2))}, r"\[N, D\]"),
    ],
)
def test_npz_refusals(tmp_path, extractor, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_reference(tmp_path / "x.npz", extractor)


def test_missing_and_broken_file(tmp_path, extractor):
    with pytest.raises(FileNotFoundError, match=r"x\.npz does not exist"):
        load_reference(tmp_path / "x.npz", extractor)
    (tmp_path / "x.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"x\.npz is not a readable npz"):
        load_reference(tmp_path / "x.npz", extractor)

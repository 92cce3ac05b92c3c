"""References by name, by address and by path, and whether they fit the extractor."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from erk.io.config import read_config
from metrics import references
from metrics.reference_files import Reference, write_reference
from metrics.references import (
    ROWS,
    ReferenceRow,
    check_extractor,
    describe,
    known_references,
    load_reference,
    real_images,
    reference_names,
)
from metrics.statistics import Statistics

ADDRESSES = {  # as the projects that publish the files give them
    "imagenet512": "nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl",
    "imagenet64": "nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img64.pkl",
    "cifar10": "nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz",
    "ffhq64": "nvlabs-fi-cdn.nvidia.com/edm/fid-refs/ffhq-64x64.npz",
    "afhqv2-64": "nvlabs-fi-cdn.nvidia.com/edm/fid-refs/afhqv2-64x64.npz",
    "imagenet64-edm": "nvlabs-fi-cdn.nvidia.com/edm/fid-refs/imagenet-64x64.npz",
}


class Stand(NamedTuple):
    """A stand-in for an extractor that is never run."""

    name: str
    feature_dim: int
    sha256: str = "a" * 64


@pytest.fixture(scope="module")
def built_in(extractor):
    return load_reference("digits", {"digits": extractor})


@pytest.fixture
def bare(tmp_path):
    """tmp_path/mine.npz with mu and sigma of `dim` dimensions."""

    def write(dim, **more):
        path = tmp_path / "mine.npz"
        np.savez(path, mu=np.zeros(dim), sigma=np.eye(dim), **more)
        return path

    return write


def test_digits(extractor, built_in, digits):
    features = extractor(digits[0]).features
    result = built_in.statistics["digits"]
    assert (built_in.name, built_in.protocol, built_in.image_size) == ("digits", "digits", 8)
    assert (result.n, result.weights) == (1797, extractor.sha256)
    assert torch.equal(result.features, features)
    np.testing.assert_allclose(result.cov, np.cov(features.double().T), atol=1e-10)
    assert built_in.labels.bincount().min() >= 174
    assert check_extractor(built_in, extractor) is result
    assert torch.equal(load_reference("digits").statistics["digits"].cov, result.cov)


def test_real_digits_are_those_of_scikit_learn(digits):
    images, labels = digits
    pixels, classes = load_digits(return_X_y=True)
    assert torch.equal(images.flatten(1), torch.from_numpy((pixels * 255 / 16).astype("uint8")))
    assert torch.equal(labels, torch.from_numpy(classes))


def test_a_bare_npz_of_digits(tmp_path, extractor, built_in):
    mean, cov, _, features, _ = built_in.statistics["digits"]
    path = tmp_path / "mine.npz"
    np.savez(path, mu=mean, sigma=cov, num_images=1797)
    result = load_reference(path, {"digits": extractor})
    assert (result.name, result.protocol) == ("mine", "digits")
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.statistics["digits"][2:] == (1797, None, None)
    assert torch.equal(result.statistics["digits"].cov, cov)
    np.savez(path, mu=mean, sigma=cov, features=features)
    result = load_reference(str(path), {"digits": extractor}).statistics["digits"]
    assert result.n == 1797
    assert torch.equal(result.features, features)


def test_a_bare_npz_belongs_to_the_extractor_of_its_dimension(bare):
    stands = {name: Stand(name, dim) for name, dim in (("vgg16", 12), ("dinov2", 7))}
    result = load_reference(bare(7), stands)
    assert (list(result.statistics), result.protocol) == (["dinov2"], "kynkaat-dinov2")
    for dim, name, protocol in ((2048, "inception", "edm"), (64, "digits", "digits")):
        result = load_reference(bare(dim), stands)
        assert (list(result.statistics), result.protocol) == ([name], protocol)
    with pytest.raises(ValueError, match=r"has 3 dimensions .* must have .*12 \(vgg16\)"):
        load_reference(bare(3), stands)


def test_names_are_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    for name, address in ADDRESSES.items():
        with pytest.raises(FileNotFoundError, match="not in the cache"):
            load_reference(name, offline=True)
        (tmp_path / address).parent.mkdir(parents=True, exist_ok=True)
        path = write_reference(tmp_path / "x.npz", {"inception": moments(3)}, protocol="other")
        path.rename(tmp_path / address)
        result = load_reference(name, offline=True)
        row = known_references()[name]
        assert (result.name, result.protocol, result.image_size) == (
            name, row.protocol, row.image_size,
        )  # fmt: skip
        by_address = load_reference(row.statistics, offline=True)
        assert (by_address.name, by_address.protocol) == (Path(address).stem, "other")
        assert by_address.sha256 == result.sha256


def moments(dim, **more):
    return Statistics(torch.zeros(dim).double(), torch.eye(dim).double(), **more)


def test_the_table_of_names():
    names = reference_names()
    rows = known_references()
    assert names == tuple(rows)
    assert [line.split()[0] for line in describe()] == list(names)
    result = {name: (row.protocol, row.image_size) for name, row in rows.items()}
    assert result == {
        "digits": ("digits", 8),
        "mnist": ("mnist", 28),
        "imagenet512": ("erk-paper", 512),
        "imagenet64": ("edm2", 64),
        "cifar10": ("edm", 32),
        "ffhq64": ("edm", 64),
        "afhqv2-64": ("edm", 64),
        "imagenet64-edm": ("edm", 64),
        "imagenet64-adm": ("adm", 64),
        "imagenet128-adm": ("adm", 128),
        "imagenet256-adm": ("adm", 256),
        "imagenet512-adm": ("adm", 512),
    }


@pytest.mark.parametrize("name", ["imagenet", "digit"])
def test_unknown_names_are_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"no reference '{name}': choose digits, mnist, "):
        load_reference(name)


@pytest.mark.parametrize("name", ["statistics.pkl", "folder/statistics"])
def test_missing_files(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        load_reference(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        load_reference(name)


GOOD = "a:\n  statistics: https://host/a.npz\n  protocol: edm\n  image_size: 8\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "  sha: 1\n", r"rows\.yaml: row 'a': sha: unknown key; known are protocol, image"),
        (GOOD.replace("8", "eight"), "row 'a': image_size: Input should be a valid integer"),
        (GOOD.replace("8", "true"), "image_size: Input should be a valid integer, not True"),
        (GOOD.replace("protocol: edm", "protocol:"), "protocol: Input should be a valid string"),
        (GOOD.replace("  protocol: edm\n", ""), "row 'a': protocol: missing: add it"),
        (GOOD.replace("statistics: https://host/a.npz", "licence: MIT"), "'a': must have either"),
        (GOOD + "  images: b.zip\n", "'a': must have either statistics or images: give one"),
        (GOOD.replace("statistics", "images"), "'a': must have both images and extractors"),
        ("a: https://host/a.npz", "row 'a': must be a mapping of protocol, image_size"),
        ("- a\n- b\n", r"rows\.yaml: must be a mapping of names to rows"),
        ("a: [", r"rows\.yaml:1: not readable YAML"),
    ],
)
def test_errors_in_the_table(tmp_path, text, message):
    path = tmp_path / "rows.yaml"
    path.write_text(GOOD)
    assert read_config(path, dict[str, ReferenceRow]) == {
        "a": ReferenceRow("edm", 8, "https://host/a.npz")
    }
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path, dict[str, ReferenceRow])
    assert "\n" not in str(caught.value)


def test_moments_and_features_of_different_images_by_a_row(tmp_path, monkeypatch, digits):
    """Moments of a training set, features and labels of a test set: configuration only."""
    images, labels = (one.numpy() for one in digits)
    np.savez(tmp_path / "train.npz", images=images[:1000, 0])
    np.savez(tmp_path / "test.npz", images=images[1000:, 0], labels=labels[1000:])
    (tmp_path / "references.yaml").write_text(
        "split:\n  images: train.npz\n  features: test.npz\n  extractors: [digits]\n"
        "  protocol: digits\n  image_size: 8\n"
    )
    monkeypatch.setattr(references, "ROWS", tmp_path / "references.yaml")
    known_references.cache_clear()
    try:
        reference = load_reference("split")
        assert torch.equal(real_images("split")[0], digits[0][:1000])
    finally:
        monkeypatch.undo()
        known_references.cache_clear()
    statistics = reference.statistics["digits"]
    assert statistics.n == 1000 and statistics.features.shape == (797, 64)
    assert reference.labels.tolist() == labels[1000:].tolist()


def test_real_images_of_a_reference_of_statistics():
    with pytest.raises(ValueError, match="imagenet512 has no real images: choose among digits"):
        real_images("imagenet512")


def test_the_shipped_table_has_no_row_twice():
    keys = [line.partition(":")[0] for line in ROWS.read_text().splitlines() if line[:1].isalnum()]
    assert keys == list(known_references())


def test_statistics_must_fit_the_extractor(tmp_path):
    inception = Stand("inception", 5)
    for weights in (None, inception.sha256):
        result = moments(5, weights=weights)
        reference = Reference("mine", "", {"inception": result})
        assert check_extractor(reference, inception) is result
    with pytest.raises(ValueError, match="mine has no statistics under vgg16, only under incept"):
        check_extractor(reference, Stand("vgg16", 5))
    with pytest.raises(ValueError, match="mine has 5 dimensions but the extractor inception has 6"):
        check_extractor(reference, Stand("inception", 6))
    other = Stand("inception", 5, "b" * 64)
    with pytest.raises(ValueError, match=r"different weights of inception \(sha256 aaaaaaaa and"):
        check_extractor(reference, other)

    path = write_reference(tmp_path / "mine.npz", reference.statistics)
    assert load_reference(path, {"vgg16": Stand("vgg16", 6)}).name == "mine"
    for stand in (other, Stand("inception", 6)):
        with pytest.raises(ValueError, match="the reference mine"):
            load_reference(path, {"inception": stand})

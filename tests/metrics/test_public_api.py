"""One call from images to numbers, whatever form images and references have."""

import numpy as np
import pytest
import torch

import metrics
from metrics.references import load_reference


@pytest.fixture(scope="module")
def networks(extractor):
    return {"digits": extractor}


@pytest.fixture(scope="module")
def expected(digits, reference, networks):
    return metrics.evaluate(digits[0][:200], reference, extractors=networks, groups=2)


def test_two_lines_equal_the_one_call(digits, reference, networks, expected):
    features = metrics.extract(digits[0][:200], networks)
    evaluation = metrics.evaluate(features, reference, protocol="digits", groups=2)
    assert evaluation.values == expected.values and evaluation.errors == expected.errors


@pytest.mark.parametrize("form", ["folder", "npz", "zip", "batches"])
def test_every_form_of_images_gives_the_same_numbers(form, digits, save_pngs, tmp_path, expected):
    images = digits[0][:200]
    if form == "folder":
        given = save_pngs(images)
    elif form == "zip":
        import shutil

        given = shutil.make_archive(str(tmp_path / "packed"), "zip", save_pngs(images))
    elif form == "npz":
        given = tmp_path / "images.npz"
        np.savez(given, images=images[:, 0].numpy())
    else:
        given = iter(images.split(64))
    evaluation = metrics.evaluate(given, "digits", groups=2)
    assert evaluation.values["fd"] == pytest.approx(expected.values["fd"], rel=1e-5)
    for name in ("precision", "recall"):
        assert evaluation.values[name] == expected.values[name]


@pytest.mark.parametrize("form", ["tensor", "folder", "npz", "features"])
def test_real_images_serve_as_the_reference(form, digits, save_pngs, tmp_path, networks):
    real, images = digits[0][:300], digits[0][300:500]
    given = real
    if form == "folder":
        given = save_pngs(real, "real")
    elif form == "npz":
        given = tmp_path / "real.npz"
        np.savez(given, arr_0=real[:, 0].numpy())
    elif form == "features":
        given = metrics.extract(real, networks)
    evaluation = metrics.evaluate(images, given, "digits", extractors=networks, groups=1)
    assert evaluation.details["real_n"] == 300
    moments = [metrics.Moments(64), metrics.Moments(64)]
    for one, part in zip(moments, (real, images), strict=True):
        one.add(networks["digits"](part).features)
    assert evaluation.values["fd"] == pytest.approx(metrics.frechet_distance(*moments), rel=1e-5)
    with pytest.raises(ValueError, match="--protocol NAME"):
        metrics.evaluate(images, given)


def test_labels_give_an_accuracy(digits, reference, networks):
    images, labels = digits[0][:100], digits[1][:100]
    evaluation = metrics.evaluate(images, reference, labels=labels, extractors=networks)
    assert evaluation.values["accuracy"] > 0.97


def test_images_in_memory_are_stored_where_a_cache_is_given(digits, tmp_path):
    calls = []

    class Counted:
        name, feature_dim, sha256, precision = "counted", 64, "ab" * 32, "fp32"

        def __call__(self, images):
            calls.append(len(images))
            return type(digits_outputs)(images.flatten(1).float())

    digits_outputs = metrics.load_extractor("digits")(digits[0][:2])
    for _ in range(2):
        features = metrics.extract(digits[0][:300], {"counted": Counted()}, tmp_path)
        assert features.outputs["counted"].features.shape == (300, 64)
    assert sum(calls) == 300
    metrics.extract(digits[0][:300] // 2, {"counted": Counted()}, tmp_path)
    assert sum(calls) == 600


def test_a_row_holds_all_that_is_known(expected, extractor):
    row = expected.to_dict()
    assert row["fd"] == expected.values["fd"] and row["fd_se"] == expected.errors["fd"]
    assert row["extractors"] == {"digits": extractor.sha256}
    assert row["reference"] == "digits" and row["n"] == 200 and row["groups"] == 2
    assert row["notes"] == expected.notes and "fd_floor" in row
    assert any("compare these only with 200 images" in note for note in expected.notes)


def test_the_digits_classifier_is_not_loaded_for_other_references(tmp_path, monkeypatch):
    """A reference of statistics needs no network."""
    path = tmp_path / "mine.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    monkeypatch.setattr("metrics.references.load_extractor", lambda *_: pytest.fail("loaded"))
    assert list(load_reference(path).statistics) == ["inception"]


def test_unknown_options_are_refused(digits):
    with pytest.raises(TypeError, match="grups"):
        metrics.evaluate(digits[0][:20], "digits", grups=2)


def test_frechet_distance_takes_moments_and_pairs():
    moments = metrics.Moments(3).add(torch.randn(50, 3))
    pair = moments.mean, moments.cov
    zero = pytest.approx(0, abs=1e-12)
    assert metrics.frechet_distance(moments, pair) == zero
    assert metrics.frechet_distance(real=pair, generated=moments) == zero

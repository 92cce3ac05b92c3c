"""The one-pass core: blocks, paired differences and the floor."""

import math

import pytest
import torch

from metrics.evaluation import (
    Metrics,
    extract,
    fd_floor,
    measure,
    measure_blocks,
    paired_differences,
    standard_errors,
    to_row,
)
from metrics.extractors import Features


def block(fd: float, **others: float) -> Metrics:
    values = dict.fromkeys(Metrics._fields[2:], None) | others
    return Metrics(n=100, fd=fd, **values)


def test_real_digits_are_perfect(extractor, reference, digits):
    images, labels = digits
    result = measure(images.split(500), extractor, reference, labels=labels.tolist())
    assert result.metrics.fd < 1e-6
    assert (result.metrics.precision, result.metrics.recall) == (1, 1)
    assert result.metrics.accuracy > 0.99
    assert 9 < result.metrics.is_mean <= 10
    assert (result.protocol, result.extractor_sha256) == ("digits", extractor.sha256)
    assert result.reference_sha256 == reference.sha256


def test_noise_is_far_away(extractor, reference):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=generator)
    result = measure([noise], extractor, reference)
    assert result.metrics.fd > 100
    assert result.metrics.precision < 0.5 and result.metrics.recall < 0.3
    assert result.metrics.accuracy is None


def test_collapse_to_one_class_shows_in_recall(extractor, reference, digits):
    images, labels = digits
    result = measure([images[labels == 1]], extractor, reference)
    assert result.metrics.precision == 1
    assert result.metrics.recall < 0.2


def test_batches_do_not_matter(extractor, reference, digits):
    images = digits[0][:400]
    a, b = (measure(images.split(size), extractor, reference).metrics for size in (33, 400))
    assert a.fd == pytest.approx(b.fd, rel=1e-4)


def test_blocks_are_disjoint_and_in_seed_order(extractor, reference, digits):
    images = digits[0][:307]
    result = measure([images], extractor, reference, blocks=3)
    assert [part.n for part in result.blocks] == [102, 102, 102]
    second = measure([images[102:204]], extractor, reference)
    assert result.blocks[1].fd == pytest.approx(second.metrics.fd, rel=1e-4)
    assert result.blocks[1].recall == second.metrics.recall


def test_too_few_images_for_some_metrics(extractor, reference, digits):
    metrics = measure([digits[0][:3]], extractor, reference).metrics
    assert metrics[2:] == (None,) * 5
    assert math.isfinite(metrics.fd)


def test_moments_alone_give_no_precision(extractor, reference, digits):
    result = measure([digits[0][:50]], extractor, reference._replace(features=None))
    assert result.metrics.precision is None and result.metrics.recall is None
    assert result.metrics.fd > 0


def test_standard_errors():
    errors = standard_errors([block(1.0, recall=0.5), block(2.0), block(3.0)])
    assert errors["fd"] == pytest.approx(1 / math.sqrt(3))
    assert errors["recall"] is None  # not in every block
    assert standard_errors([block(1.0)])["fd"] is None
    assert standard_errors([])["fd"] is None


def test_paired_differences_cancel_what_the_seeds_share():
    a = [block(10.0), block(20.0), block(30.0)]
    b = [block(9.0), block(18.5), block(29.5)]
    found = paired_differences(a, b)
    assert found["fd"] == pytest.approx((1.0, 0.5 / math.sqrt(3)))
    assert found["precision"] is None
    for other in (b[:2], [b[0]._replace(n=7), *b[1:]]):
        with pytest.raises(ValueError, match="equal sizes"):
            paired_differences(a, other)
    with pytest.raises(ValueError, match="at least 2 blocks"):
        paired_differences(a[:1], b[:1])


def test_floor_falls_with_n_and_is_lower_with_balanced_classes(reference):
    small, large = (fd_floor(reference, n, balanced=True) for n in (500, 4000))
    assert 0 < large.value < small.value / 3
    assert fd_floor(reference, 500).value > small.value
    assert fd_floor(reference, 500, balanced=True) == small
    assert fd_floor(reference, 500, balanced=True, seed=1) != small


def test_row_is_flat(extractor, reference, digits):
    row = to_row(measure([digits[0][:100]], extractor, reference, blocks=2))
    assert row["n"] == 100 and row["blocks"] == 2 and row["block_n"] == 50
    assert row["fd_se"] > 0 and row["k"] == 3 and row["accuracy_se"] is None
    assert not any(isinstance(value, tuple | list) for value in row.values())


def test_refusals(extractor, reference, digits):
    images = digits[0][:20]
    with pytest.raises(ValueError, match="no images to measure"):
        measure([], extractor, reference)
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        measure([images[:1]], extractor, reference)
    with pytest.raises(ValueError, match="20 images but labels of shape .19."):
        measure([images], extractor, reference, labels=[0] * 19)
    with pytest.raises(ValueError, match="20 images do not fill 11 blocks"):
        measure([images], extractor, reference, blocks=11)
    with pytest.raises(ValueError, match="do not fill 0 blocks"):
        measure_blocks(extractor(images), reference, 0)
    with pytest.raises(ValueError, match="needs real features"):
        fd_floor(reference._replace(features=None), 100)
    with pytest.raises(ValueError, match="at least 2 samples"):
        fd_floor(reference, 1)


def test_nan_features_name_the_image(reference):
    class Broken:
        name, feature_dim, sha256 = "broken", 64, ""

        def __call__(self, images):
            features = torch.zeros(len(images), 64)
            features[images[:, 0, 0, 0] == 9] = torch.nan
            return Features(features, None)

    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    images[4] = 9
    with pytest.raises(ValueError, match="broken features hold NaN or infinity .first in row 4"):
        extract(images.split(2), Broken())

"""Wrong types at the public functions of `metrics`: one sentence that names the argument (J)."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import metrics
from metrics import Evaluation, Moments
from metrics.extractors import Outputs
from metrics.options import Options
from metrics.statistics import whole_number

ROWS = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
SET = metrics.Features({"inception": Outputs(ROWS, ROWS)}, torch.arange(30))
ONE = Evaluation("edm", 30, {}, {}, [])
MOMENTS = Moments(4).add(ROWS)
STATISTICS = metrics.statistics.Statistics(MOMENTS.mean, MOMENTS.cov, 30, ROWS)
IMAGES = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
EXTRACTORS = {"digits": lambda images: Outputs(images.float().flatten(1))}


def evaluate(**more):
    values = {"images": SET, "reference": SET, "protocol": "edm", "metrics": "fid", **more}
    return metrics.evaluate(**values)


DOORS = [
    *((lambda bad, one=one: evaluate(**{one: bad}), one) for one in (
        "images", "protocol", "metrics", "labels", "extractors", "batch", "groups", "memory",
    )),
    (lambda bad: evaluate(reference=bad or 3), "images"),  # real ones
    (lambda bad: evaluate(cache=bad), "cache"),
    (lambda bad: Options(weights=bad), "weights"),
    (lambda bad: metrics.extract(bad, EXTRACTORS), "images"),
    (lambda bad: metrics.extract(IMAGES, bad), "extractors"),
    (lambda bad: metrics.extract(IMAGES, EXTRACTORS, bad), "cache"),
    (lambda bad: metrics.extract(IMAGES, EXTRACTORS, batch=bad), "batch"),
    (lambda bad: metrics.paired_differences(bad, ONE), "a"),
    (lambda bad: metrics.paired_differences(ONE, bad), "b"),
    (lambda bad: metrics.load_evaluator(bad), "reference"),
    (lambda bad: metrics.load_evaluator("digits", protocol=bad), "protocol"),
    (lambda bad: metrics.load_evaluator("digits", metrics=bad), "metrics"),
    (lambda bad: metrics.load_evaluator("digits", real=bad), "real"),
    (lambda bad: metrics.load_evaluator("digits", extractors=bad), "extractors"),
    (lambda bad: metrics.load_evaluator("digits", options=bad), "options"),
    (lambda bad: metrics.fd_floor(bad, 9), "real"),
    (lambda bad: metrics.fd_floor(STATISTICS, 9, bad), "labels"),
    (lambda bad: metrics.open_images(bad), "path"),
    (lambda bad: metrics.load_extractor(bad), "name"),
    (lambda bad: metrics.load_reference(bad), "source"),
    (lambda bad: metrics.load_reference("digits", bad), "extractors"),
    (lambda bad: metrics.frechet_distance(bad, MOMENTS), "real"),
    (lambda bad: metrics.frechet_distance(MOMENTS, bad), "generated"),
    (lambda bad: metrics.frechet_distance(MOMENTS, MOMENTS, factor=bad), "factor"),
    (lambda bad: metrics.fd_infinity(bad, ROWS), "real"),
    (lambda bad: Moments(bad), "dim"),
    (lambda bad: Moments(4, bad), "device"),
    (lambda bad: Moments(4).merge(bad), "other"),
    (lambda bad: Moments.from_mean_cov(bad, MOMENTS.cov, 30), "mean"),
    (lambda bad: Moments.from_mean_cov(MOMENTS.mean, bad, 30), "cov"),
    (lambda bad: Moments.from_mean_cov(MOMENTS.mean, MOMENTS.cov, bad), "n"),
    (lambda bad: metrics.precision_recall(real=ROWS, generated=ROWS, k=bad), "k"),
    (lambda bad: metrics.density_coverage(real=ROWS, generated=ROWS, memory=bad), "memory"),
]  # fmt: skip
OPTIONAL = ("protocol", "metrics", "labels", "extractors", "memory", "cache", "real", "options",
            "factor", "reference")  # fmt: skip


@pytest.mark.parametrize(("door", "name"), DOORS, ids=[f"{i}-{d[1]}" for i, d in enumerate(DOORS)])
@pytest.mark.parametrize("bad", [None, 2.5])
def test_a_wrong_type_is_refused_by_the_name_of_the_argument(door, name, bad):
    is_optional = name in OPTIONAL or door.__code__.co_consts == (None,)
    with pytest.raises(ValueError, match=f"^{name} must be .*, not .*"):
        door(math.pi if bad is None and is_optional else bad)


def test_names_of_any_type_are_looked_up():
    with pytest.raises(ValueError, match=r"there is no protocol \[\]"):
        metrics.find_protocol([])
    with pytest.raises(ValueError, match=r"'\[\]' is no device"):
        metrics.extract(IMAGES, EXTRACTORS, device=[])


def test_features_are_no_moments():
    """The message says how moments come from features."""
    with pytest.raises(ValueError, match=r"real must be Moments.*Moments\(D\).add\(features\)"):
        metrics.frechet_distance(ROWS, ROWS)
    with pytest.raises(ValueError, match="needs an array of numbers, not {}"):
        metrics.inception_score({})


@pytest.mark.parametrize(
    ("mean", "cov", "n", "message"),
    [
        (torch.zeros(3), torch.eye(4), 9, r"cov must be a tensor \[3, 3\], not torch.float32 \[4"),
        (torch.zeros(3, 1), torch.eye(3), 9, r"mean must be a tensor \[D\]"),
        (torch.zeros(3), torch.eye(3), 1, "n must be a whole number of at least 2, not 1"),
    ],
)
def test_a_mean_has_its_covariance(mean, cov, n, message):
    with pytest.raises(ValueError, match=message):
        Moments.from_mean_cov(mean, cov, n)


def test_whole_numbers_of_every_kind():
    """All that Python takes as an index, and no bool."""
    index = SimpleNamespace(dtype=None)
    kinds = [3, np.int8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
    assert [whole_number(one, "k", least=3) for one in kinds] == [3] * 5
    assert {type(whole_number(one, "k")) for one in kinds} == {int}
    for bad in (True, np.True_, torch.tensor(True), 3.0, torch.tensor(3.0), "3", None, [3], index):
        with pytest.raises(ValueError, match="^k must be a whole number, not "):
            whole_number(bad, "k")
    for name, bad in (("k", True), ("memory", 0), ("memory", True)):
        for measure in (metrics.precision_recall, metrics.density_coverage):
            with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1"):
                measure(real=ROWS, generated=ROWS, **{name: bad})

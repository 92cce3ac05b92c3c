"""What limits an evaluation's values is said only of the measures that are shown."""

import pytest
import torch

from metrics.api import evaluate
from metrics.evaluator import Evaluator
from metrics.extractors import Outputs
from metrics.features import Features
from metrics.options import Options
from metrics.protocols import find_protocol
from metrics.reference_files import Reference
from metrics.statistics import Statistics

FD = "FD falls with N: compare these only with 30 images"
IS = "IS rises with N: compare these only with 30 images"
BOTH = "FD falls and IS rises with N: compare these only with 30 images"
RANK = "fd: the covariance of 30 images in 64 dimensions is rank-deficient"


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ("fd", [FD, RANK]),
        ("is", [IS, "is_std is the spread"]),
        ("precision,recall", []),
        ("accuracy", []),  # its value is undefined here
        ("fd,is", [BOTH, RANK, "is_std is the spread"]),
    ],
)
def test_caveats_are_of_the_measures_shown(metrics, shown, digits, reference, extractor):
    """30: "FD falls and IS rises" and the rank of the covariance were printed without an FD."""
    result = evaluate(
        digits[0][:30], reference, metrics=metrics, extractors={"digits": extractor}, groups=1
    )
    starts = ("FD falls", "IS rises", "is_std", "fd: ")
    printed = [one for one in result.caveats if one.startswith(starts)]
    assert len(printed) == len(shown), printed
    assert all(any(one.startswith(text) for one in printed) for text in shown), printed


def evaluated(numbers):
    """The evaluation of 20 images against statistics of so many real images each, all in 4-D."""
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(4, dtype=torch.float64)
    statistics = {name: Statistics(eye[0], eye, n, None) for name, n in numbers.items()}
    features = Features({name: Outputs(rows) for name in numbers}, torch.arange(20))
    tool = Evaluator.without_networks(
        find_protocol("edm2"), Reference("r", "", statistics), Options(groups=1)
    )
    return tool.evaluate(features)


def test_numbers_of_real_images_are_those_of_each_column():
    """25: every column got the number of the first statistics."""
    result = evaluated({"inception": 500, "dinov2": 3})
    assert result.details["reference_n"] == {"dinov2": 3, "inception": 500}
    assert [one for one in result.caveats if "rank-deficient" in one] == [
        "fd_dinov2: the covariance of 3 real images in 4 dimensions is rank-deficient, FD is far "
        "above its value at large N"
    ]
    assert evaluated({"inception": 500, "dinov2": 500}).details["reference_n"] == 500

"""Kinds of measures: replicates keep the draws of the full set; what is missing is said."""

import numpy as np
import pytest
import torch

from metrics.measures import Case, Measure
from metrics.statistics import Statistics

N = 400


def normal(n, dim=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


def case_of(measure, generated, groups):
    real = Statistics(torch.zeros(24), torch.eye(24), 300, normal(300, seed=5))
    return Case(measure, generated, real, None, groups, None)


@pytest.mark.parametrize(
    "measure",
    [
        Measure("is", "any", ("is", "is_std")),
        Measure("fd_infinity", "any", ("fd_infinity",)),
        Measure("kid", "any", ("kid", "kid_std"), {"subset_size": 200}),
    ],
)
def test_replicates_keep_the_draws_of_the_full_set(measure):
    """Smaller groups move the value less; new draws would move it as much for any group."""
    generated = 3 * normal(N) if measure.kind == "is" else normal(N)
    spreads = []
    for size in (40, 4):
        case = case_of(measure, generated, torch.arange(N) // size)
        value, replicates = measure.rule.compute(case)[measure.columns[0]]
        assert len(replicates) == N // size and value not in replicates
        spreads.append(np.std(replicates))
    assert spreads[1] < 0.6 * spreads[0]


def test_spreads_have_no_replicates():
    measure = Measure("is", "any", ("is", "is_std"))
    values = measure.rule.compute(case_of(measure, normal(N), torch.arange(N) % 4))
    assert len(values["is"][1]) == 4 and values["is_std"][1] == []


def test_a_measure_names_what_is_missing():
    fd = Measure("fd", "vgg16", ("fd",))
    assert fd.undefined(9, None, None) == "the reference has no statistics of vgg16"
    spatial = Measure("fd", "inception", ("sfid",), {"output": "spatial"})
    assert "statistics of inception-spatial" in spatial.undefined(9, None, None)
    bare = Statistics(torch.zeros(2), torch.eye(2))
    assert "real images are needed" in Measure("kid", "a", ("kid", "kid_std")).undefined(
        9, bare, None
    )
    accuracy = Measure("accuracy", "a", ("accuracy",))
    assert "classes are not known" in accuracy.undefined(9, None, None)
    assert accuracy.undefined(9, None, torch.zeros(9)) is None


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("fdd", {}, "there is no kind 'fdd': choose one of fd, fd_infinity, is, kid"),
        ("neighbours", {"n": 3}, "neighbours has no option 'n': choose among k, output, reduced"),
        ("neighbours", {"k": 0}, "k must be a whole number of at least 1, not 0"),
        ("is", {"splits": 2.5}, "splits must be a whole number of at least 1, not 2.5"),  # J
        ("kid", {"subset_size": "9"}, "subset_size must be a whole number of at least 1, not '9'"),
    ],
)
def test_a_measure_refuses_what_no_kind_knows(kind, options, message):
    with pytest.raises(ValueError, match=message):
        Measure(kind, "any", ("a",), options)

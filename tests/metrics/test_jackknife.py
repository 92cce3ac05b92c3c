"""The jackknife against closed forms and against the spread of repeated runs."""

import math

import pytest
import torch
from scipy import stats

from metrics.distances import frechet_distance
from metrics.jackknife import Difference, group_of, paired_difference, standard_error
from metrics.statistics import moments_of


def without(values, groups):
    """The mean of all but one group, for every group."""
    group = group_of(len(values), groups)
    return [values[group != g].mean().item() for g in range(groups)]


@pytest.mark.parametrize(("n", "groups"), [(10, 3), (50, 10), (7, 7), (5, 1), (1003, 10)])
def test_groups_are_contiguous_and_of_equal_size(n, groups):
    group = group_of(n, groups)
    sizes = group.bincount()
    assert group.dtype == torch.int64 and len(sizes) == groups
    assert group.tolist() == sorted(group.tolist())
    assert sizes.max() - sizes.min() <= 1


def test_groups_must_hold_someone():
    for groups in (0, 6):
        with pytest.raises(ValueError, match="5 samples cannot be split into"):
            group_of(5, groups)


def test_jackknife_of_a_mean_is_the_standard_error_of_the_mean():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    alone = standard_error(without(values, 60))
    assert alone == pytest.approx(values.std().item() / math.sqrt(60), rel=1e-12)
    means = values.reshape(10, 6).mean(1)
    grouped = standard_error(without(values, 10))
    assert grouped == pytest.approx(means.std().item() / math.sqrt(10), rel=1e-12)


def test_standard_error_is_none_where_nothing_is_known():
    assert standard_error([]) is None
    assert standard_error([1.0]) is None
    assert standard_error([1.0, None, 2.0]) is None
    with pytest.raises(ValueError, match="finite replicates"):
        standard_error([1.0, math.nan])


def test_error_of_a_frechet_distance_is_the_spread_of_repeats():
    """Of 200 runs of 400 samples; measured: the mean error is 0.94 of the spread."""
    draw = torch.Generator().manual_seed(1)
    eye = torch.eye(6, dtype=torch.float64)
    group = group_of(400, 10)

    def distance(samples):
        result = moments_of(samples)
        return frechet_distance(real=(eye[0] * 0.5, eye), generated=(result.mean, result.cov))

    values, errors = [], []
    for _ in range(200):
        samples = torch.randn(400, 6, generator=draw, dtype=torch.float64)
        values.append(distance(samples))
        errors.append(standard_error([distance(samples[group != g]) for g in range(10)]))
    ratio = torch.tensor(errors).mean() / torch.tensor(values).std()
    assert 0.85 < ratio < 1.1


def test_paired_difference_is_that_of_the_values_and_common_noise_cancels():
    draw = torch.Generator().manual_seed(2)
    common = torch.randn(500, generator=draw).double()
    own = torch.randn(500, generator=draw).double() * 0.01
    a, b = common + own + 0.01, common
    result = paired_difference(a.mean().item(), without(a, 10), b.mean().item(), without(b, 10))
    assert result.value == pytest.approx((a - b).mean().item(), abs=1e-12)
    assert result.error == pytest.approx(standard_error(without(a - b, 10)), rel=1e-9)
    assert result.exceeds and result.error < 0.02 * standard_error(without(a, 10))


def test_a_difference_exceeds_by_students_t():
    replicates = [0.0, 1.0, 2.0, 3.0]
    error = standard_error(replicates)
    limit = stats.t.ppf(0.975, 3) * error
    zeros = [0.0] * 4
    above, below = (paired_difference(x * limit, replicates, 0, zeros) for x in (1.001, 0.999))
    assert above == Difference(pytest.approx(1.001 * limit), error, True)
    assert not below.exceeds
    assert paired_difference(-1.001 * limit, replicates, 0, zeros).exceeds
    assert not paired_difference(1, zeros, 1, zeros).exceeds


def test_paired_difference_needs_both_sides():
    assert paired_difference(None, [1.0, 2.0], 1.0, [1.0, 2.0]) is None
    assert paired_difference(1.0, [1.0, None], 1.0, [1.0, 2.0]) is None
    assert paired_difference(1.0, [1.0], 1.0, [1.0]) is None
    with pytest.raises(ValueError, match="2 and 3 groups do not pair up"):
        paired_difference(1.0, [1.0, 2.0], 1.0, [1.0, 2.0, 3.0])

"""Moments: exact, whatever the batches and processes."""

import numpy as np
import pytest
import torch

from metrics.statistics import Moments, merged, moments_of, without_each

FEATURES = torch.randn(3001, 12, generator=torch.Generator().manual_seed(0)) * 3 + 5


def test_mean_and_cov_equal_numpy():
    moments = moments_of(FEATURES)
    wide = FEATURES.double().numpy()
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.cov, np.cov(wide, rowvar=False), atol=1e-11)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_merged_shares_equal_the_whole(world):
    shares = [moments_of(FEATURES[rank::world]) for rank in range(world)]
    merged = Moments(12)
    for share in shares:
        merged.merge(share)
    complete = moments_of(FEATURES)
    assert merged.n == 3001
    torch.testing.assert_close(merged.mean, complete.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.cov, complete.cov, rtol=0, atol=1e-10)


def test_batches_do_not_matter():
    moments = Moments(12)
    for batch in FEATURES.split(17):
        moments.add(batch)
    torch.testing.assert_close(moments.cov, moments_of(FEATURES).cov, rtol=0, atol=1e-10)


def test_a_large_offset_loses_nothing():
    """F3: sums of products would leave 1e-4 of this covariance, since eps * 1e12 = 2e-4."""
    spread = torch.randn(700, 5, generator=torch.Generator().manual_seed(1)).double()
    far = spread + 2.0**20  # exact: float32 has 24 bits, float64 53
    for moments in (moments_of(far), merged([Moments(5).add(part) for part in far.split(90)])):
        expected = np.cov(spread, rowvar=False)
        np.testing.assert_allclose(moments.cov, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("groups", [2, 3, 10])
def test_moments_without_each_part_are_those_of_the_rest(groups):
    part = torch.arange(3001) * groups // 3001
    rests = without_each([moments_of(FEATURES[part == g]) for g in range(groups)])
    for g, rest in enumerate(rests):
        expected = moments_of(FEATURES[part != g])
        assert rest.n == expected.n
        torch.testing.assert_close(rest.cov, expected.cov, rtol=0, atol=1e-10)
    assert list(without_each([moments_of(FEATURES)])) == []


def test_what_is_left_of_identical_samples_has_no_covariance():
    """F3: subtracting the part with the one other sample would leave rounding."""
    alike = FEATURES[:1].repeat(99, 1)
    parts = [moments_of(alike), moments_of(torch.cat([alike, FEATURES[1:2]]))]
    without_first, without_second = without_each(parts)
    assert without_first.cov.abs().max() > 0 and not without_second.cov.any()
    assert torch.equal(without_second.mean, FEATURES[0].double())


def test_refusals():
    bad = FEATURES.clone()
    bad[7, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity .first in row 7."):
        moments_of(bad)
    with pytest.raises(ValueError, match="do not fit moments of dimension 5"):
        Moments(5).add(FEATURES)
    for given in (FEATURES.tolist(), FEATURES.numpy(), FEATURES + 1j):  # J
        with pytest.raises(ValueError, match="must be a tensor of real numbers"):
            Moments(FEATURES.shape[1]).add(given)
    with pytest.raises(ValueError, match="cannot be merged"):
        Moments(5).merge(Moments(6))
    with pytest.raises(ValueError, match="no mean"):
        _ = Moments(5).mean
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        _ = moments_of(FEATURES[:1]).cov
    with pytest.raises(ValueError, match=r"must be \[N, D\]"):
        moments_of(FEATURES[0])

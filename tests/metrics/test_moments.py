"""Moments: exact, whatever the batches and processes."""

import numpy as np
import pytest
import torch

from metrics.statistics import Moments, moments_of

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
    whole = moments_of(FEATURES)
    assert merged.n == 3001
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.cov, whole.cov, rtol=0, atol=1e-10)


def test_batches_do_not_matter():
    moments = Moments(12)
    for batch in FEATURES.split(17):
        moments.add(batch)
    torch.testing.assert_close(moments.cov, moments_of(FEATURES).cov, rtol=0, atol=1e-10)


def test_refusals():
    bad = FEATURES.clone()
    bad[7, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity .first in row 7."):
        moments_of(bad)
    with pytest.raises(ValueError, match="do not fit moments of dimension 5"):
        Moments(5).add(FEATURES)
    with pytest.raises(ValueError, match="cannot be merged"):
        Moments(5).merge(Moments(6))
    with pytest.raises(ValueError, match="no mean"):
        _ = Moments(5).mean
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        _ = moments_of(FEATURES[:1]).cov
    with pytest.raises(ValueError, match=r"must be \[N, D\]"):
        moments_of(FEATURES[0])

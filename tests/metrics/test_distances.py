"""Distances against closed forms and against torch-fidelity."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from metrics.distances import (
    covariance_factor,
    fd_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from metrics.jackknife import group_of
from metrics.statistics import Moments, moments_of


def frechet(mu1, cov1, mu2, cov2):
    return frechet_distance(real=(mu1, cov1), generated=(mu2, cov2))


def spd(dim: int, seed: int) -> np.ndarray:
    half = np.random.default_rng(seed).normal(size=(dim, dim))
    return half @ half.T / dim + 0.1 * np.eye(dim)


def test_frechet_of_commuting_covariances():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    a, b, shift = rng.uniform(0.1, 3, (3, 40))
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    result = frechet(np.zeros(40), basis * a @ basis.T, shift, basis * b @ basis.T)
    assert result == pytest.approx(expected, rel=1e-12)


def test_frechet_where_one_covariance_is_the_congruence_of_the_other():
    cov, t = spd(60, 1), spd(60, 2)  # the root of cov @ (t cov t) has the trace of t cov
    other = t @ cov @ t
    expected = np.trace(cov) + np.trace(other) - 2 * np.trace(t @ cov)
    result = frechet(np.ones(60), cov, np.ones(60), other)
    assert result == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("swap", [False, True])
def test_frechet_of_rank_deficient_covariances(swap):
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    a, b = rng.uniform(0.5, 2, (2, 50))
    a[20:] = 0
    b[:10] = 0
    b[35:] = 0
    first, second = basis * a @ basis.T, basis * b @ basis.T
    if swap:
        first, second = second, first
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    result = frechet(np.zeros(50), first, np.zeros(50), second)
    assert result == pytest.approx(expected, rel=1e-7)  # measured: 6e-9


@pytest.mark.parametrize("rank", [3, 30])
def test_frechet_of_rank_deficient_covariances_stored_in_float32(rank):
    """Measured: 4e-8 and 1e-8 off, where float64 is 1e-15 off."""
    half = np.random.default_rng(10).normal(size=(60, rank))
    cov, t = half @ half.T, spd(60, 2)
    expected = np.trace(cov) + np.trace(t @ cov @ t) - 2 * np.trace(t @ cov)
    for kind, tolerance in ((np.float64, 1e-12), (np.float32, 2e-7)):
        stored = (matrix.astype(kind) for matrix in (cov, t @ cov @ t))
        result = frechet(np.ones(60), next(stored), np.ones(60), next(stored))
        assert result == pytest.approx(expected, rel=tolerance)


def test_frechet_of_a_distribution_with_itself_is_zero():
    features = np.random.default_rng(4).normal(size=(30, 64))  # fewer samples than dimensions
    mean, cov = features.mean(0), np.cov(features, rowvar=False)
    assert 0 <= frechet(mean, cov, mean, cov) < 1e-10
    assert 0 <= frechet(np.zeros(60), spd(60, 1), np.zeros(60), spd(60, 1)) < 1e-12


@pytest.mark.parametrize("n", [50, 100, 500, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_frechet_of_identical_samples(n, seed):
    """F3, G5: |mu1 - mu2|^2 + tr cov1, either way round; also of sums of products."""
    generator = torch.Generator().manual_seed(seed)
    alike = (10 * torch.rand(1, 64, generator=generator)).repeat(n, 1).double()
    real = moments_of(torch.randn(300, 64, generator=generator))
    mean = alike.mean(0)
    products = (alike.T @ alike - n * torch.outer(mean, mean)) / (n - 1)
    expected = float((alike[0] - real.mean).square().sum() + real.cov.trace())
    for collapsed in (moments_of(alike), (mean, products)):
        assert frechet_distance(real, collapsed) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(collapsed, real) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(collapsed, collapsed) == 0


def test_frechet_of_distributions_in_different_directions():
    """The product of covariances is 0: its rounding is no damage. Measured: 7e-9 off, since
    eigenvalues of eps * scale have roots of 1.5e-8."""
    rng = np.random.default_rng(8)
    basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    a, b = np.zeros((2, 40))
    a[:10], b[20:] = rng.uniform(0.5, 2, 10), rng.uniform(5, 20, 20)
    first, second = basis * a @ basis.T, basis * b @ basis.T
    for one, other in ((first, second), (second, first)):
        result = frechet(np.zeros(40), one, np.ones(40), other)
        assert result == pytest.approx(40 + a.sum() + b.sum(), rel=1e-7)


def test_frechet_equals_torch_fidelity():
    rng = np.random.default_rng(5)
    sets = [rng.normal(size=(500, 64)) @ rng.normal(size=(64, 64)), rng.normal(1, 2, (400, 64))]
    stats = [{"mu": s.mean(0), "sigma": np.cov(s, rowvar=False)} for s in sets]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    ours = frechet(*(stat[key] for stat in stats for key in ("mu", "sigma")))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_frechet_takes_tensors_of_any_float():
    cov = torch.from_numpy(spd(8, 6))
    mean = torch.zeros(8)
    assert frechet(mean, cov.float(), mean + 1, cov.float()) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("rank", [10, 40])
def test_frechet_with_the_factor_of_the_reference(rank):
    half = np.random.default_rng(7).normal(size=(20, rank))
    real, generated = (np.zeros(20), half @ half.T), (np.ones(20), spd(20, 8))
    factor = covariance_factor(real[1])
    assert factor.shape == (20, min(rank, 20))
    assert torch.allclose(factor @ factor.T, torch.from_numpy(real[1]), atol=1e-12)
    given = frechet_distance(real=real, generated=generated, factor=factor)
    assert given == frechet_distance(real=real, generated=generated)
    with pytest.raises(ValueError, match="does not belong to a covariance of 20 dimensions"):
        frechet_distance(real=real, generated=generated, factor=factor[:-1])


@pytest.mark.parametrize(
    ("mu", "cov", "message"),
    [
        (np.zeros(3), np.eye(3), "dimensions"),
        (np.zeros(2), np.eye(3), r"needs the generated mean .D. and"),
        (np.array([0, np.nan]), np.eye(2), "means hold NaN"),
        (np.zeros(2), np.full((2, 2), np.inf), "covariances hold NaN or infinity"),
        (np.zeros(2), -np.eye(2), "negative eigenvalues"),
        (np.zeros(2), np.array([[0.0, 1.0], [1.0, 0.0]]), "negative eigenvalues"),
        (np.zeros(2), np.array([[1.0, 5.0], [0.0, 1.0]]), "generated covariance is not symmetric"),
        (np.zeros(2), np.eye(2) * (1 + 1j), "needs real numbers, not complex ones"),
        (torch.zeros(2), torch.eye(2) * (1 + 1j), "needs real numbers, not complex ones"),
    ],
)
def test_frechet_refuses(mu, cov, message):
    with pytest.raises(ValueError, match=message):
        frechet(np.zeros(2), np.eye(2), mu, cov)
    with pytest.raises(ValueError, match=message.replace("generated", "real")):
        frechet(mu, cov, np.zeros(2), np.eye(2))


def test_frechet_of_a_constant_and_of_no_covariance():
    """J: with the covariance 0 on one side, the other one's eigenvalues were not looked at."""
    with pytest.raises(ValueError, match="negative eigenvalues"):
        frechet(np.zeros(2), np.zeros((2, 2)), np.zeros(2), -np.eye(2))
    assert frechet(np.zeros(2), np.zeros((2, 2)), np.ones(2), np.eye(2)) == 4.0


@pytest.mark.parametrize("n", [10, 203])
def test_inception_score_equals_torch_fidelity(n):
    logits = torch.randn(n, 12, generator=torch.Generator().manual_seed(2)) * 3
    theirs = isc_features_to_metric(logits)
    ours = inception_score(logits)
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-12)


def test_inception_score_in_parts_of_a_size():
    """ADM's rule: parts of split_size in the given order, the last one smaller."""
    logits = 3 * torch.randn(23, 6, generator=torch.Generator().manual_seed(3))
    parts = [isc_features_to_metric(part, splits=1, shuffle=False) for part in logits.split(10)]
    means = [part["inception_score_mean"] for part in parts]
    ours = inception_score(logits, shuffle=False, split_size=10)
    assert ours == pytest.approx((np.mean(means), np.std(means)), rel=1e-12)


def test_inception_score_shuffles():
    logits = 20 * torch.eye(10).repeat_interleave(50, 0)  # sorted by class
    mean, _ = inception_score(logits)
    assert 7 < mean <= 10  # unshuffled parts would hold one class each and score 1


def test_inception_score_of_certain_and_of_blind_classifiers():
    assert inception_score(1000 * torch.eye(10).repeat(30, 1), splits=1) == (pytest.approx(10), 0)
    assert inception_score(torch.zeros(50, 10)) == (pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_inception_score_refuses():
    with pytest.raises(ValueError, match="N >= 10"):
        inception_score(torch.zeros(9, 10))
    with pytest.raises(ValueError, match="logits hold NaN"):
        inception_score(torch.full((20, 10), torch.nan))


def normal(n, dim=24, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + shift


def test_kernel_distance_equals_torch_fidelity():
    real, written = normal(130, seed=1), normal(120, shift=0.2, seed=2)
    theirs = kid_features_to_metric(
        written, real, kid_subsets=7, kid_subset_size=100, verbose=False
    )
    ours = kernel_distance(real=real, generated=written, subsets=7, subset_size=100)
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-6)  # measured: 1e-14
    single = kernel_distance(
        real=real.float(), generated=written.float(), subsets=7, subset_size=100
    )
    theirs = kid_features_to_metric(
        written.float(), real.float(), kid_subsets=7, kid_subset_size=100, verbose=False
    )  # their sums have the dtype of the features: 4e-7 apart
    assert single == pytest.approx(tuple(theirs.values()), rel=2e-6)
    same = kernel_distance(real=real, generated=normal(130, seed=3), subset_size=100)
    assert abs(same[0]) < ours[0] / 5


def test_fd_infinity_takes_the_bias_away():
    """Shifted normals, whose distance is dim * 0.3^2 = 2.16, averaged over three sets of 4000.

    Measured: FD of a tenth of them 0.38 too large, extrapolated 0.005 off.
    """
    real, few, infinite = (torch.zeros(24), torch.eye(24)), [], []
    for seed in range(3):
        written = normal(4000, shift=0.3, seed=seed)
        moments = moments_of(written[:400])
        few.append(frechet_distance(real=real, generated=(moments.mean, moments.cov)))
        infinite.append(fd_infinity(real=real, generated=written))
    assert np.mean(few) > 2.16 + 0.15
    assert abs(np.mean(infinite) - 2.16) < 0.08
    assert fd_infinity(real=real, generated=written) == infinite[-1]
    assert fd_infinity(real=real, generated=written, seed=1) != infinite[-1]


def test_fd_infinity_is_the_intercept_of_a_line_over_one_over_size():
    written, real = normal(40, 3), (np.zeros(3), np.eye(3))
    generator, drawn = torch.Generator().manual_seed(7), []
    for size in (4, 22, 40):
        result = moments_of(written[torch.randperm(40, generator=generator)[:size]])
        drawn.append(frechet_distance(real=real, generated=(result.mean, result.cov)))
    _, intercept = np.polyfit([1 / 4, 1 / 22, 1 / 40], drawn, 1)
    ours = fd_infinity(real=real, generated=written, points=3, seed=7)
    assert ours == pytest.approx(intercept, rel=1e-10)


def test_fd_infinity_of_many_samples_begins_at_5000(monkeypatch):
    sizes = []
    add = Moments.add

    def counted(self, features):
        if self.n == 0:
            sizes.append(0)
        sizes[-1] += len(features)
        return add(self, features)

    monkeypatch.setattr(Moments, "add", counted)
    fd_infinity(real=(np.zeros(1), np.eye(1)), generated=normal(60_000, 1), points=3)
    assert sizes == [5000, 32_500, 60_000]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kernel_distance(real=normal(9), generated=normal(2000)),
            "real features .* >= 1000",
        ),
        (
            lambda: kernel_distance(real=normal(2000), generated=normal(2000, 3)),
            "use one extractor",
        ),
        (
            lambda: kernel_distance(real=normal(9), generated=normal(9), subsets=0),
            "at least 1 subset",
        ),
        (lambda: fd_infinity(real=(0, 0), generated=normal(19)), "N >= 20"),
        (lambda: fd_infinity(real=(0, 0), generated=normal(30), points=1), "at least 2 points"),
        (lambda: inception_score(torch.zeros(9, 2), split_size=0), "parts of 0"),
        # J: were errors of NumPy's and PyTorch's functions, or counts cut to whole numbers
        (lambda: inception_score(torch.zeros(9, 2), splits=2.5), "splits must be a whole .* 2.5"),
        (lambda: inception_score(torch.zeros(9, 2), split_size=True), "split_size must be a whole"),
        (lambda: fd_infinity(real=(0, 0), generated=normal(30), points=2.5), "points must be a wh"),
        (lambda: fd_infinity(real=(0, 0), generated=normal(30), seed="1"), "seed must be a whole"),
        (lambda: kernel_distance(real=normal(9), generated=normal(9), subsets=2.5), "subsets must"),
        (lambda: group_of(9, 2.5), "groups must be a whole number, not 2.5"),
    ],
)
def test_more_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kernel_distance_of_constants_by_hand():
    """(x.y / D + 1)^3 of the constants .1 and .3 alone: 1.01^3 + 1.09^3 - 2 1.03^3."""
    real, generated = np.full((50, 8), 0.3), np.full((50, 8), 0.1)
    mean, spread = kernel_distance(real=real, generated=generated, subset_size=20)
    assert mean == pytest.approx(1.01**3 + 1.09**3 - 2 * 1.03**3, rel=1e-9) and spread < 1e-12
    with pytest.raises(ValueError, match="the kernel distance overflows"):
        kernel_distance(real=real * 1e120, generated=generated, subset_size=20)


@pytest.mark.parametrize(
    ("logits", "options", "score"),
    [
        (np.ones((50, 10)), {}, 1),  # the same for every class
        (np.ones((1, 10)), {"splits": 1}, 1),  # one image
        (np.random.default_rng(0).normal(size=(50, 1)), {}, 1),  # one class
        (np.eye(10) * 1e300, {"splits": 1}, 10),  # one sure image of each class
        (np.eye(2, dtype=np.float16) * 9, {"splits": 2}, 1),  # parts of one image
    ],
)
def test_inception_scores_by_hand(logits, options, score):
    mean, spread = inception_score(logits, **options)
    assert mean == pytest.approx(score, rel=1e-9) and spread < 1e-9


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 10), {}),
        ((0, 10), {"splits": 1}),
        ((50, 0), {}),
        ((50, 10), {"splits": 0}),
        ((50, 10), {"split_size": 0}),
        ((50,), {}),
    ],
)
def test_an_inception_score_needs_samples_and_classes(shape, options):
    with pytest.raises(ValueError, match="needs logits .N, K. with N >= "):
        inception_score(np.zeros(shape), **options)


def test_a_frechet_distance_needs_a_dimension():
    empty = np.zeros(0), np.zeros((0, 0))
    with pytest.raises(ValueError, match="mean .D. and covariance"):
        frechet_distance(empty, empty)
    assert frechet_distance(([0.0], [[1.0]]), ([3.0], [[4.0]])) == pytest.approx(
        10
    )  # 9 + (1 - 2)^2


def test_numbers_that_overflow_are_refused():
    """R19: finite numbers whose distance exceeds float64; half as large an exponent is exact."""
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(ValueError, match="the Fréchet distance overflows"):
        frechet_distance((zero, 1e200 * eye), (zero, 1e200 * eye))
    with pytest.raises(ValueError, match="the Fréchet distance overflows"):
        frechet_distance((zero + 1e200, eye), (zero - 1e200, eye))
    near = frechet_distance((zero, 1e100 * eye), (zero, 4e100 * eye))
    assert near == pytest.approx(3e100, rel=1e-12)  # 3 (2 - 1)^2 1e100
    features = np.random.default_rng(0).normal(size=(20, 3))
    large = features * 1e200
    with pytest.raises(ValueError, match="the kernel distance overflows"):
        kernel_distance(real=large, generated=features, subset_size=20)
    with pytest.raises(ValueError, match="the Inception score overflows"):
        inception_score(np.array([[1.5e308, -1.5e308], [0, 0]]), splits=1)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        fd_infinity((zero, eye), large)

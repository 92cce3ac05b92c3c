"""Distances against closed forms and against torch-fidelity."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from metrics import distances
from metrics.distances import frechet_distance, inception_score, precision_recall


def spd(dim: int, seed: int) -> np.ndarray:
    half = np.random.default_rng(seed).normal(size=(dim, dim))
    return half @ half.T / dim + 0.1 * np.eye(dim)


def test_frechet_of_commuting_covariances():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    a, b, shift = rng.uniform(0.1, 3, (3, 40))
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(np.zeros(40), basis * a @ basis.T, shift, basis * b @ basis.T)
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_where_one_covariance_is_the_congruence_of_the_other():
    cov, t = spd(60, 1), spd(60, 2)  # the root of cov @ (t cov t) has the trace of t cov
    other = t @ cov @ t
    expected = np.trace(cov) + np.trace(other) - 2 * np.trace(t @ cov)
    found = frechet_distance(np.ones(60), cov, np.ones(60), other)
    assert found == pytest.approx(expected, rel=1e-10)


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
    found = frechet_distance(np.zeros(50), first, np.zeros(50), second)
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_of_a_distribution_with_itself_is_zero():
    features = np.random.default_rng(4).normal(size=(30, 64))  # fewer samples than dimensions
    mean, cov = features.mean(0), np.cov(features, rowvar=False)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-6


def test_frechet_equals_torch_fidelity():
    rng = np.random.default_rng(5)
    sets = [rng.normal(size=(500, 64)) @ rng.normal(size=(64, 64)), rng.normal(1, 2, (400, 64))]
    stats = [{"mu": s.mean(0), "sigma": np.cov(s, rowvar=False)} for s in sets]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    ours = frechet_distance(*(stat[key] for stat in stats for key in ("mu", "sigma")))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_frechet_takes_tensors_of_any_float():
    cov = torch.from_numpy(spd(8, 6))
    mean = torch.zeros(8)
    assert frechet_distance(mean, cov.float(), mean + 1, cov.float()) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize(
    ("mu", "cov", "message"),
    [
        (np.zeros(3), np.eye(3), "of one D"),
        (np.zeros(2), np.eye(3), "of one D"),
        (np.array([0, np.nan]), np.eye(2), "means hold NaN"),
        (np.zeros(2), np.full((2, 2), np.inf), "covariances hold NaN or infinity"),
        (np.zeros(2), -np.eye(2), "negative eigenvalues"),
    ],
)
def test_frechet_refuses(mu, cov, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(2), np.eye(2), mu, cov)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile", [64, 2048])
def test_precision_recall_equal_torch_fidelity(dtype, tile, monkeypatch):
    monkeypatch.setattr(distances, "TILE", tile)
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(301, 16, generator=generator, dtype=dtype)
    generated = torch.randn(257, 16, generator=generator, dtype=dtype) * 0.8 + 0.3
    for k in (1, 3, 7):
        ours = precision_recall(real=real, generated=generated, k=k)
        theirs = calculate_precision_recall_full(generated, real, k)
        assert 0.05 < ours[0] < 0.95 or 0.05 < ours[1] < 0.95
        counts = [value * n for value, n in zip(ours + theirs, (257, 301, 257, 301), strict=True)]
        assert counts[:2] == pytest.approx(counts[2:], abs=1e-3)  # the same number of members


def test_radius_reaches_the_kth_other_sample():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert distances.squared_radii(points, 1).tolist() == [1, 1, 4, 16]
    assert distances.squared_radii(points, 3).tolist() == [49, 36, 16, 49]


def test_a_point_on_the_edge_of_a_ball_is_inside():
    real = np.array([[0.0], [2.0], [10.0], [12.0]])
    assert precision_recall(real=real, generated=[[4.0], [14.5]], k=1) == (0.5, 1.0)


def test_mode_collapse_is_precise_but_recalls_little():
    real = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)) + 5
    collapsed = real[:3].repeat(100, 1)
    assert precision_recall(real=real, generated=collapsed) == (1.0, 3 / 400)
    precision, recall = precision_recall(real=collapsed, generated=real)
    assert (precision, recall) == (3 / 400, 1.0)


@pytest.mark.parametrize(
    ("real", "generated", "k", "message"),
    [
        (np.zeros((3, 2)), np.zeros((9, 2)), 3, "real features .* N >= 4"),
        (np.zeros((9, 2)), np.zeros((3, 2)), 3, "generated features .* N >= 4"),
        (np.zeros((9, 2)), np.zeros((9, 3)), 3, "real features have 2 dimensions"),
        (np.zeros((9, 2)), np.full((9, 2), np.nan), 3, "generated features hold NaN"),
        (np.zeros((9, 2)), np.zeros((9, 2)), 0, "k must be at least 1"),
    ],
)
def test_precision_recall_refuse(real, generated, k, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(real=real, generated=generated, k=k)


def test_precision_recall_arguments_must_be_named():
    with pytest.raises(TypeError):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 2)))


@pytest.mark.parametrize("n", [10, 203])
def test_inception_score_equals_torch_fidelity(n):
    logits = torch.randn(n, 12, generator=torch.Generator().manual_seed(2)) * 3
    theirs = isc_features_to_metric(logits)
    ours = inception_score(logits)
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-12)


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

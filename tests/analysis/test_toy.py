"""The toy's distribution against its definition, its closed forms against autograd and others."""

import math

import pytest
import torch
from adaptive import adaptive_solution

import erk
from erk.analysis import toy
from erk.analysis.oracles import cosine, exact_dominant, power_iteration
from erk.calibration.solver_error import converged
from erk.method.settings import Settings

SIGMAS = (5.0, 0.3, 0.02, 0.002)
GAP = torch.tensor([[0.54, 1.04], [0.5434, 1.0375]], dtype=torch.float64)


@pytest.fixture(scope="module")
def tree():
    return toy.tree("A")


def states(mixture, sigma, count=32):
    """Samples at this noise level, and two points in the gap between branches."""
    draw = torch.Generator().manual_seed(0)
    clean, _ = toy.draw_samples(mixture, count, draw)
    noisy = clean + sigma * torch.randn(count, 2, generator=draw, dtype=torch.float64)
    return torch.cat([noisy, GAP])


def test_the_tree_has_127_branches_of_8_components(tree):
    assert tree.means.shape == (1016, 2) and tree.covariances.shape == (1016, 2, 2)
    assert tree.depth.bincount().tolist() == [8 * 2**depth for depth in range(7)]
    assert tree.log_weights.exp().sum() == pytest.approx(1, abs=1e-14)
    assert tree.label.unique().tolist() == [0]


def test_parameters_are_float64_values_of_float32(tree):
    for values in (tree.means, tree.covariances):
        assert values.dtype == torch.float64 and torch.equal(values, values.float().double())
    assert torch.equal(tree.covariances, tree.covariances.mT)
    assert (torch.linalg.eigvalsh(tree.covariances) > 0).all()


def test_the_trunk_is_where_its_definition_puts_it(tree):
    """The first random numbers of RandomState(2) and the formulas, by hand."""
    length = 0.292 * (1 - 0.41675785 * 0.2)
    first = (torch.tensor([0.0030, 0.0325]) + 0.07 * length * 0.5**0.5) * torch.tensor(
        [1.3136, 1.3844]
    )
    assert torch.allclose(tree.means[0].float(), first, atol=1e-7)
    weights = tree.log_weights.exp()
    assert torch.equal(weights[:8], weights[:1].expand(8))  # equal along a branch
    share = tree.log_weights[8] - tree.log_weights[0]  # of the trunk's first child
    lengths = (tree.means[[7, 15]] - tree.means[[0, 8]]) / torch.tensor([1.3136, 1.3844]) / 0.86
    assert share.exp() == pytest.approx(
        (lengths.norm(dim=1)[1] / lengths.norm(dim=1)[0] / 2).item()
    )


def test_all_lies_in_the_view(tree):
    low, high = toy.VIEW[0]
    assert (tree.means > low).all() and (tree.means < high).all()


def test_class_a_within_both_classes(tree):
    both = toy.tree("AB")
    assert len(both.means) == 2032 and both.label.bincount().tolist() == [1016, 1016]
    assert torch.equal(both.means[:1016], tree.means)
    assert torch.equal(both.means[1016:], toy.tree("B").means)
    assert both.log_weights.exp().sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("classes", ["C", "", "ABC"])
def test_unknown_classes_are_refused(classes):
    with pytest.raises(ValueError, match="A, B and AB"):
        toy.tree(classes)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_density_is_that_of_the_mixture(tree, sigma):
    x = states(tree, sigma)
    spread = tree.covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
    apart = (x[:, None] - tree.means)[..., None]
    square = (apart.mT @ torch.linalg.inv(spread) @ apart)[..., 0, 0]
    terms = tree.log_weights - 0.5 * (square + torch.logdet(2 * math.pi * spread))
    # measured 4e-12
    assert torch.allclose(toy.log_density(tree, x, sigma), terms.logsumexp(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_and_hessian_are_derivatives_by_autograd(tree, sigma):
    x = states(tree, sigma).requires_grad_()
    (score,) = torch.autograd.grad(toy.log_density(tree, x, sigma).sum(), x)
    assert torch.allclose(toy.score(tree, x, sigma), score, rtol=1e-11, atol=1e-11)
    rows = torch.autograd.functional.jacobian(lambda y: toy.score(tree, y, sigma).sum(0), x)
    hessian = toy.hessian(tree, x.detach(), sigma)
    assert torch.allclose(hessian, rows.permute(1, 0, 2), rtol=1e-10, atol=1e-10)
    assert torch.equal(hessian, hessian.mT)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_and_hessian_are_finite_differences(tree, sigma):
    x, h = states(tree, sigma), 1e-5 * sigma
    for axis in range(2):
        e = h * torch.eye(2, dtype=torch.float64)[axis]
        for function, derivative in (
            (toy.log_density, toy.score(tree, x, sigma)[:, axis]),
            (toy.score, toy.hessian(tree, x, sigma)[:, axis]),
        ):
            result = (function(tree, x + e, sigma) - function(tree, x - e, sigma)) / (2 * h)
            scale = derivative.abs().max()
            assert (result - derivative).abs().max() < 1e-6 * scale  # measured 5e-8


def test_one_noise_level_per_row(tree):
    x, sigma = states(tree, 0.02, 4), torch.tensor([5, 0.3, 0.02, 0.002, 0.01, 1]).double()
    for function in (toy.log_density, toy.score, toy.hessian):
        rows = torch.cat([function(tree, x[i : i + 1], s) for i, s in enumerate(sigma)])
        assert torch.allclose(function(tree, x, sigma), rows, rtol=1e-9, atol=1e-9)


def test_rows_do_not_depend_on_how_many_there_are(tree):
    x = states(tree, 0.02, 300)
    parts = torch.cat([toy.score(tree, part, 0.02) for part in x.split(7)])
    assert torch.allclose(toy.score(tree, x, 0.02), parts, rtol=1e-9)


def test_gaps_need_float64(tree):
    """log p = -109 between two branches at step 30, finite here and 0 as a float32 density."""
    value = toy.log_density(tree, GAP[:1], Settings(sigma_max=5.0).sigmas()[30].double())
    assert value.item() == pytest.approx(-108.9, abs=0.1)
    assert value.float().exp() == 0


def test_stiffness_of_the_branches(tree):
    """Median over the components of a generation at step 29; read off Figure 1: 22 33 43 60 77."""
    sigma = Settings(sigma_max=5.0, dtype=torch.float64).sigmas()[28]
    rho = toy.dominant(tree, tree.means, sigma).rho
    medians = [rho[tree.depth == depth].median().item() for depth in range(5)]
    assert medians == pytest.approx([22.8, 31.7, 44.1, 58.8, 73.8], abs=0.06)


@pytest.mark.parametrize("sigma", [0.3, 0.01])
def test_dominant_pair_is_that_of_the_oracles(tree, sigma):
    x, level = states(tree, sigma), torch.tensor(sigma, dtype=torch.float64)
    result, field = toy.dominant(tree, x, level), toy.drift(tree)
    exact = exact_dominant(field, x, level)
    assert torch.allclose(result.rho, exact.rho, rtol=1e-12)
    assert (cosine(result.v, exact.v) > 1 - 1e-12).all()
    assert ((field(x, level).f * result.v).sum(1) >= 0).all()
    power = power_iteration(field, x[:4], level, iterations=100)
    assert torch.allclose(result.rho[:4], power.rho, rtol=1e-10)


def test_drift_and_denoiser_say_the_same(tree):
    x, sigma = states(tree, 0.3), torch.tensor(0.3, dtype=torch.float64)
    point = toy.drift(tree)(x, sigma)
    assert torch.equal(point.x, x) and point.f.dtype == torch.float64
    denoised = toy.denoiser(tree)(x, sigma, None)
    assert torch.allclose((x - denoised) / sigma, point.f, rtol=1e-12)
    single = toy.denoiser(tree)(x.float(), sigma.float().expand(len(x)), None)
    assert single.dtype == torch.float32 and (single - denoised).abs().max() < 1e-5


def test_samples_have_the_mixtures_moments(tree):
    x, label = toy.draw_samples(toy.tree("AB"), 50_000, torch.Generator().manual_seed(0))
    class_a = x[label == 0]
    weights = tree.log_weights.exp()[:, None]
    mean = (weights * tree.means).sum(0)
    centred = tree.means - mean
    spread = (weights[..., None] * (tree.covariances + centred[:, :, None] * centred[:, None])).sum(
        0
    )
    assert (class_a.mean(0) - mean).abs().max() < 0.005  # measured 0.0013
    assert (torch.cov(class_a.T) - spread).abs().max() < 0.002  # measured 0.0002
    again, _ = toy.draw_samples(toy.tree("AB"), 50_000, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_erk_sample_takes_the_denoiser(tree):
    """Samples lie on the tree: their log-density is that of true samples."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(128, 2, generator=draw)
    x0 = erk.sample(toy.denoiser(tree), noise, steps=32, sigma_max=5.0, w_stiff=0.4, w_con=0.5)
    true, _ = toy.draw_samples(tree, 128, draw)
    result, expected = (toy.log_density(tree, x, 0.002).mean() for x in (x0, true))
    assert x0.dtype == torch.float32 and abs(result - expected) < 0.4  # measured 1.52 and 1.36


def test_the_converged_solution_is_that_of_adaptive_steps(tree):
    """In float64; the denoiser sees float32 states in neither."""
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = toy.denoiser(tree)
    settings = Settings(sigma_max=5.0, schedule="polynomial", dtype=torch.float64)
    end = converged(settings, model, noise, evaluations=512)
    exact = adaptive_solution(model, 5 * noise, sigma_max=5.0, tolerance=1e-7)
    assert (end - exact).abs().max() < 1e-4

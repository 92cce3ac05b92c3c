"""A fit is least squares along the reference path."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import erk
from erk.calibration.fit import USUAL, NormalEquations, ReferenceBatch, fit
from erk.calibration.problem import gaussian, problem_for
from erk.calibration.solver_error import errors, reference_path
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS


def gaussian_batch(problem, seed, n=8):
    dtype, draw = problem.settings.dtype, torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 4, dtype=dtype, generator=draw)
    path = reference_path(problem.exact_drift(None), noise, problem.sigmas, 400)
    return ReferenceBatch(noise, None, path)


def random_system():
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 40, 5, generator=draw, dtype=torch.float64)
    return vectors, torch.randn(40, 5, generator=draw, dtype=torch.float64)


def solve(vectors, target):
    equations = NormalEquations(len(vectors))
    equations.add(vectors, target, target)
    return equations.solve()


def test_normal_equations_summed_over_batches_are_least_squares():
    vectors, target = random_system()
    equations = NormalEquations(3)
    for part in range(4):
        equations.add(vectors[:, part::4], target[part::4], target[part::4])
    weights, share = equations.solve()
    a, b = vectors.flatten(1).T, target.flatten()
    exact = torch.linalg.lstsq(a, b).solution
    assert torch.allclose(torch.tensor(weights, dtype=torch.float64), exact)
    assert share == pytest.approx(1 - ((b - a @ exact).square().sum() / b.square().sum()).item())


def test_equal_directions_share_their_weight():
    vectors, target = random_system()
    vectors[2] = vectors[1]
    weights, _ = solve(vectors, target)
    assert weights[1] == pytest.approx(weights[2])


def test_a_direction_of_the_size_of_rounding_gets_no_weight():
    vectors, target = random_system()
    vectors[0] *= 1e-6  # below 1e-5 of Euler's step
    assert solve(vectors, target)[0][0] == 0


@pytest.mark.parametrize("solver", ["heun", "dpm2", "deis", "unipc"])
def test_gaussian_data_of_one_scale_is_solved_exactly(solver):
    """Every direction is a multiple of x there, so one of them removes the whole error."""
    plain = Settings(solver=solver, steps=6, schedule="polynomial", dtype=torch.float64)
    problem = problem_for(gaussian, plain)
    fitted = fit(problem, [gaussian_batch(problem, 0)], ["drift"])
    fresh = gaussian_batch(problem, 1)
    corrected = replace(plain, erk=fitted.correction)
    before, after = (
        errors(s, s.drift(gaussian), fresh.noise, fresh.path[-1]) for s in (plain, corrected)
    )
    assert after.mean() < 1e-3 * before.mean()


def test_heuns_weights_approach_those_of_the_exponential_integrator():
    """On one scale error / e = -q (1 - r) to leading order, q = sigma^2/(S^2 + sigma^2).

    See docs/theory.md; fitted on a fine schedule the weights are that.
    """
    plain = Settings(steps=120, schedule="logsnr", dtype=torch.float64)
    problem = problem_for(gaussian, plain)
    weights = fit(problem, [gaussian_batch(problem, 0)], ["embedded"]).correction.weights
    for (weight,), (sigma, lower) in zip(weights, pairwise(plain.sigmas().tolist()), strict=True):
        if 0.1 < sigma < 10:
            q = sigma**2 / (0.25 + sigma**2)
            assert weight == pytest.approx(-q * (1 - lower / sigma), rel=0.25)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_sampling_follows_the_path_that_was_fitted(solver):
    """Fitted in two batches, sampled in one: the samples end nearer to the reference."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(20), model)
    plain = Settings(solver=solver, steps=5, schedule="polynomial")
    problem = problem_for(model, plain)
    path = reference_path(problem.exact_drift(labels), noise, problem.sigmas, 48)
    batches = [
        ReferenceBatch(noise[rows], labels[rows], path[:, rows])
        for rows in (slice(0, 10), slice(10, 20))
    ]
    fitted = fit(problem, batches, USUAL)
    assert all(0 < share <= 1 for share in fitted.explained)
    corrected = replace(plain, erk=fitted.correction)
    before, after = (
        errors(s, s.drift(model, labels), noise, path[-1]).mean() for s in (plain, corrected)
    )
    assert after < 0.8 * before

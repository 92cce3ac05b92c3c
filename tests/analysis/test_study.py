"""Oracles against cases with known answers, and the embedded estimates against the oracles."""

import math

import pytest
import torch

import erk
from erk.analysis.oracles import (
    cosine,
    estimator_study,
    exact_dominant,
    global_error,
    jacobian,
    local_error,
    power_iteration,
)
from erk.analysis.reference_solution import field_of, reference_solution
from erk.method.point import Point
from erk.method.settings import Settings

STD = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)


def gauss(x, sigma, labels=None):
    """D of Gaussian data with deviations STD."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1)
    variance = STD**2
    return (variance / (variance + sigma**2)).to(x.dtype) * x


def gauss_field(x, sigma):
    return (x - gauss(x, sigma)) / sigma.reshape(-1, 1)


def exact_end(x, high, low):
    """The exact solution: x grows as sqrt(STD^2 + sigma^2)."""
    return x * torch.sqrt((STD**2 + low**2) / (STD**2 + high**2))


def double_drift(x, sigma):
    return Point(x, gauss_field(x, sigma.reshape(1)), sigma)


def start(count=4):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, generator=draw, dtype=torch.float64)


def test_jacobian_is_exact():
    sigma = torch.tensor(0.3, dtype=torch.float64)
    expected = torch.diag(sigma / (STD**2 + sigma**2)).expand(4, 3, 3)
    assert torch.allclose(jacobian(double_drift, start(), sigma), expected, atol=1e-12)


def test_power_iteration_finds_the_dominant_pair():
    sigma = torch.tensor(0.3, dtype=torch.float64)
    found = power_iteration(double_drift, start(), sigma, iterations=60)
    exact = exact_dominant(double_drift, start(), sigma)
    assert torch.allclose(found.rho, exact.rho, rtol=1e-8)
    assert torch.allclose(cosine(found.v, exact.v), torch.ones(4, dtype=torch.float64), atol=1e-8)
    assert found.history.shape == (60, 4)
    assert (found.history[-1] - exact.rho).abs().max() < (found.history[1] - exact.rho).abs().max()


def test_local_error_is_that_of_the_exact_solution():
    x, high, low = start(), torch.tensor(1.0).double(), torch.tensor(0.6).double()
    from erk.method.solvers import heun

    exact = exact_end(x, 1.0, 0.6) - heun(double_drift, x, high, low).x
    found = local_error(double_drift, x, high, low)
    assert torch.allclose(found, exact, rtol=1e-3, atol=1e-9)


def test_reference_solution_meets_its_tolerance_and_ignores_batch_mates():
    x = start(6) * 80
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = reference_solution(gauss_field, x, 80.0, 0.002, tolerance, tolerance)
        errors.append((found.x - exact_end(x, 80.0, 0.002)).abs().max().item())
        assert errors[-1] < 20 * tolerance
    assert errors[0] > errors[1] > errors[2]
    alone = reference_solution(gauss_field, x[2:3], 80.0, 0.002, 1e-5, 1e-5)
    together = reference_solution(gauss_field, x, 80.0, 0.002, 1e-5, 1e-5)
    assert torch.equal(alone.x, together.x[2:3]) and alone.nfe[0] == together.nfe[2]
    easy = torch.zeros_like(x[:1])  # nothing to integrate: large steps at once
    paces = reference_solution(gauss_field, torch.cat([x[:1], easy]), 80.0, 0.002, 1e-5, 1e-5).nfe
    assert paces[1] < paces[0] == together.nfe[0]


def test_reference_solution_says_when_it_cannot():
    with pytest.raises(ArithmeticError, match="within 3 steps"):
        reference_solution(gauss_field, start() * 80, max_steps=3)


def test_global_error_falls_at_second_order():
    noise = start()
    coarse, fine = (
        global_error(gauss, noise, steps=n, dtype=torch.float64, fine_steps=1024).mean()
        for n in (32, 64)
    )
    assert 3 < coarse / fine < 6


def test_estimates_on_a_network_agree_with_power_iteration():
    """The digits network: log-stiffness estimated and exact correlate."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(4), model)
    settings = Settings(steps=8)
    rows = list(estimator_study(settings.drift(model, labels), noise, settings, iterations=16))
    assert len(rows) == 6
    estimated = torch.cat([row.rho for row in rows]).log()
    exact = torch.cat([row.rho_exact for row in rows]).log()
    assert torch.corrcoef(torch.stack([estimated, exact]))[0, 1] > 0.9
    # the estimate is a secant slope along one direction: never much above the largest eigenvalue
    assert ((estimated - exact) < math.log(1.2)).float().mean() > 0.9


def test_reference_on_a_network_agrees_with_many_heun_steps():
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(2), model)
    found = reference_solution(field_of(model, labels), noise * 80, rtol=1e-4, atol=1e-4)
    nodes = Settings(steps=128).sigmas()[:-1].double().tolist()
    fine = erk.sample(model, noise, labels, schedule=nodes)
    assert (found.x - fine).abs().max() < 0.02

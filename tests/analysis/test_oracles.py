"""The oracles give known answers, and the embedded estimates agree with them."""

import math

import torch

import erk
from erk.analysis.oracles import cosine, exact_dominant, jacobian, local_error, power_iteration
from erk.method.point import Point
from erk.method.sampler import integrate
from erk.method.settings import Settings
from erk.method.solvers import heun
from erk.method.stiffness import stiffness

STD = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
SIGMA = torch.tensor(0.3, dtype=torch.float64)


def gauss_drift(x, sigma):
    """The exact drift of Gaussian data with standard deviations STD."""
    return Point(x, x * sigma / (STD**2 + sigma**2), sigma)


def states(count=4):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, generator=draw, dtype=torch.float64)


def test_jacobian_is_exact():
    expected = torch.diag(SIGMA / (STD**2 + SIGMA**2)).expand(4, 3, 3)
    assert torch.allclose(jacobian(gauss_drift, states(), SIGMA), expected, atol=1e-12)


def test_power_iteration_converges_to_the_dominant_pair():
    power = power_iteration(gauss_drift, states(), SIGMA, iterations=60)
    exact = exact_dominant(gauss_drift, states(), SIGMA)
    assert torch.allclose(power.rho, exact.rho, rtol=1e-8)
    assert torch.allclose(cosine(power.v, exact.v), torch.ones(4, dtype=torch.float64), atol=1e-8)
    assert power.history.shape == (60, 4)
    assert (power.history[-1] - exact.rho).abs().max() < (power.history[1] - exact.rho).abs().max()


def test_local_error_is_the_distance_to_the_exact_solution():
    """On Gaussian data x grows as sqrt(STD^2 + sigma^2)."""
    x, high, low = states(), torch.tensor(1.0).double(), torch.tensor(0.6).double()
    exact = x * torch.sqrt((STD**2 + low**2) / (STD**2 + high**2))
    expected = exact - heun(gauss_drift, x, high, low).x
    assert torch.allclose(local_error(gauss_drift, x, high, low), expected, rtol=1e-3, atol=1e-9)


def test_embedded_stiffness_of_a_network_agrees_with_power_iteration():
    """On digits the logarithms correlate, and the estimate is at most the largest eigenvalue.

    It is a secant slope along one direction.
    """
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(4), model)
    settings = Settings(steps=8)
    estimated, exact = [], []
    with torch.no_grad():
        for state in integrate(settings.drift(model, labels), noise, settings):
            step = state.step
            if step.twin is not None:
                x, sigma = step.start.x, step.start.sigma
                drift = settings.drift(model, labels)
                estimated.append(stiffness(step.start, step.twin).rho.flatten().log())
                exact.append(power_iteration(drift, x, sigma, iterations=16).rho.log())
    assert len(exact) == 6
    estimated, exact = torch.cat(estimated), torch.cat(exact)
    assert torch.corrcoef(torch.stack([estimated, exact]))[0, 1] > 0.9
    assert ((estimated - exact) < math.log(1.2)).float().mean() > 0.9

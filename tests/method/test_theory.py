"""Every formula of docs/theory.md that is not asserted elsewhere, on the exact linear ODE."""

import math
from itertools import pairwise

import pytest
import torch

from erk.api import sample
from erk.method.corrections import Correction
from erk.method.guidance import alpha
from erk.method.point import Point
from erk.method.settings import Settings
from erk.method.solvers import make_solver
from erk.method.stiffness import stiffness

SCALE = 0.5  # S, the deviation of the data
LEVELS = (0.15, 0.4, 0.5, 1.0, 4.0)  # sigma


def exact(sigma):
    """A solution for Gaussian data, [1, 1]."""
    return (SCALE**2 + torch.as_tensor(sigma, dtype=torch.float64) ** 2).sqrt().reshape(1, 1)


def rate(sigma):
    """lambda(sigma)."""
    return sigma / (SCALE**2 + sigma**2)


def gauss(x, sigma):
    return Point(x, x * rate(sigma), sigma)


def measured(name, sigma, ratio, order=None, **options):
    """c and h of one step with exact memory: error = -h c (h rho)^2 f, rho of the solver's pair."""
    levels = sigma * ratio ** torch.arange(3.0, -2.0, -1.0, dtype=torch.float64)
    if name == "ipndm":  # equal steps, as its weights assume
        levels = sigma * (1 + (ratio - 1) * torch.arange(3.0, -2.0, -1.0, dtype=torch.float64))
    if order is not None:
        options["order"] = order
    solver = make_solver(name, options, levels, (0.002, 80.0))
    here, there = levels[3], levels[4]
    memory = tuple(gauss(exact(s), s) for s in reversed(levels[:3]))[: (order or 1) - 1]
    step = solver(gauss, exact(here), here, there, memory or None)
    twin = step.twin
    if name == "heun":
        before = levels[2]
        euler = exact(before) * (1 + (here - before) * rate(before))
        twin = gauss(euler, here)
    rho = stiffness(step.start, twin).rho
    h = (here - there).abs()
    return ((exact(there) - step.x) / (-h * (h * rho) ** 2 * step.start.f)).item()


@pytest.mark.parametrize("sigma", LEVELS)
def test_heuns_local_error_has_the_term_that_eq_9_omits(sigma):
    """exact - Heun = -h^3 x (lambda^3/6 - lambda''/12), for any lambda(sigma)."""
    h, k = 1e-3 * sigma, 2.0

    def wave(x, s):
        return Point(x, x * torch.cos(k * s), s)  # x = exp(sin(k s)/k)

    s = torch.tensor(sigma, dtype=torch.float64)
    x = (torch.sin(k * s) / k).exp().reshape(1, 1)
    step = make_solver("heun")(wave, x, s, s - h, None)
    error = (torch.sin(k * (s - h)) / k).exp() - step.x
    third, second = math.cos(k * sigma) ** 3, -(k**2) * math.cos(k * sigma)
    assert error.item() == pytest.approx(-(h**3) * x.item() * (third / 6 - second / 12), rel=0.02)


@pytest.mark.parametrize("sigma", LEVELS)
def test_heuns_coefficient_on_gaussian_data(sigma):
    """c = (1/(sigma lambda) - 1)/2 = S^2/(2 sigma^2); 1/6 where lambda'' = 0, at sqrt(3) S."""
    c = (1 / (sigma * rate(sigma)) - 1) / 2
    assert c == pytest.approx(SCALE**2 / (2 * sigma**2))
    assert measured("heun", sigma, 1.002) == pytest.approx(c, rel=0.03)
    assert measured("heun", 3**0.5 * SCALE, 1.002) == pytest.approx(1 / 6, rel=0.02)


@pytest.mark.parametrize("sigma", LEVELS)
def test_coefficients_of_the_other_solvers_on_gaussian_data(sigma):
    """dpm2, Adams-Bashforth of order 2 (ipndm, deis in sigma) and DPM-Solver++(2M)."""
    share = sigma**2 / SCALE**2
    assert measured("dpm2", sigma, 1.002) == pytest.approx((1 + share) / 8, rel=0.03)
    for name, options in (("ipndm", {}), ("deis", {"mode": "rhoab"})):
        measured_value = measured(name, sigma, 1.002, 2, **options)
        assert measured_value == pytest.approx(-5 / 4 * share, rel=0.03)
    measured_value = measured("dpmpp", sigma, 1.002, 2, lower_order_final=False)
    assert measured_value == pytest.approx(3 / 4 - share / 2, rel=0.03, abs=0.01)


def test_only_order_two_has_a_fixed_coefficient():
    """For order p c scales with h^(p - 2), so that no w_stiff fits two step sizes."""
    for order in (2, 3):
        far, near = (measured("ipndm", 1.0, ratio, order) for ratio in (1.02, 1.01))
        assert far / near == pytest.approx(2.0 ** (order - 2), rel=0.1)


@pytest.mark.parametrize("hl", [-2.0, -0.5, 0.5, 2.0])
def test_alpha_is_exact_for_the_sign_of_minus_h_lambda(hl):
    """For constant lambda alpha(-h lambda) is all of the error; alpha(+h lambda) is worse than the
    square where data contract (lambda > 0)."""
    f, x = hl, 1.0  # h = 1
    heun = x - f / 2 * (1 + (1 - hl))
    left = {z: math.exp(-hl) - heun + alpha(torch.tensor(z, dtype=torch.float64)).item() * f
            for z in (-hl, hl)}  # fmt: skip
    assert left[-hl] == pytest.approx(0, abs=1e-9)
    square = math.exp(-hl) - heun + hl**2 / 6 * f
    assert abs(square) < abs(left[hl]) if hl > 0 else abs(square) > abs(left[-hl])


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_the_exponential_weight_of_heuns_second_drift(ratio):
    """The weight b of f(x^Euler) that is exact on one scale: r/2 for S << sigma', 1/2 for S >> ."""
    for scale, weight in ((1e-3, ratio / 2), (1e3, 0.5)):
        s, t = 1.0, ratio
        first, second = (v / (scale**2 + v**2) for v in (s, t))
        h = t - s
        true = math.sqrt((scale**2 + t**2) / (scale**2 + s**2))
        b = (true - 1 - h * first) / (h * (second * (1 + h * first) - first))
        assert b == pytest.approx(weight, rel=0.01)


@pytest.mark.parametrize("steps", [3, 9])
def test_heun_with_the_exponential_weight_is_dpm_solver_pp(steps):
    """The multiple -(1 - r) of the embedded difference: the trapezoid rule for D in 1/sigma."""
    levels = Settings(steps=steps, schedule="polynomial", dtype=torch.float64).sigmas()
    weights = tuple((-(1 - b / a),) for a, b in pairwise(levels.tolist()))
    correction = Correction(tuple(levels.tolist()), ("embedded",), weights)
    noise = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = torch.tensor([[-1.0], [0.3], [1.0]])

    def model(x, sigma, labels=None):  # of three points, so that nothing is linear
        shares = (-0.5 * ((x[..., None] - means[:, 0]) / sigma).square()).softmax(-1)
        return shares @ means[:, 0]

    chosen = {"schedule": levels.tolist(), "dtype": torch.float64}
    ours = sample(model, noise, erk=correction, **chosen)
    options = {"r": 1.0, "predict_x0": True}
    theirs = sample(model, noise, solver="dpm2", solver_options=options, **chosen)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(theirs, sample(model, noise, **chosen), atol=1e-2)

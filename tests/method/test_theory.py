"""Every formula of docs/theory.md that is not asserted elsewhere, on the exact linear ODE."""

import math
from itertools import pairwise

import pytest
import torch

from erk.api import sample
from erk.method.corrections import Correction, auto, error_ratio
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


@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.3, 0.7, 2.0, 4.0])
@pytest.mark.parametrize(("variant", "b"), [("bh2", 1 / 12), ("bh1", -1 / 6)])
def test_the_error_of_unipc_of_order_one(scale, sigma, variant, b):
    """S9: (dl)^3 (-D''/12 + (1 - q) D'/4 + b D'), D' = q (1 - q) x, q = sigma lambda."""
    dl = 1e-3
    levels = torch.tensor(sigma, dtype=torch.float64) * torch.exp(-dl * torch.arange(3.0).double())
    now, after = levels[:2]
    options = {"order": 1, "variant": variant, "lower_order_final": False}
    solver = make_solver("unipc", options, levels)
    start, end = (math.sqrt(scale**2 + level**2) for level in (now, after))

    def drift(x, s):
        return Point(x, x * s / (scale**2 + s**2), s)

    step = solver(drift, torch.full((1, 1), start, dtype=torch.float64), now, after, None)
    error = (end - step.x).item() / dl**3
    q = sigma**2 / (scale**2 + sigma**2)
    first = q * (1 - q) * start
    second = scale**2 * sigma**2 * (sigma**2 - 2 * scale**2) / start**5  # of D, over l
    wanted = -second / 12 + (1 - q) * first / 4 + b * first
    assert error == pytest.approx(wanted, rel=0.01, abs=2e-4)
    if variant == "bh1":
        assert (error > 0) == (sigma < scale)
    if (scale, sigma, variant) == (1.0, 4.0, "bh2"):
        assert error == pytest.approx(0.0067, abs=1e-4)


@pytest.mark.parametrize(("solver", "form"), [
    ("heun", lambda r: -(1 - r) / 3), ("dpm2", lambda r: -(1 - r**0.5) / 2),
])  # fmt: skip
@pytest.mark.parametrize(("steps", "excess"), [(32, 0.1), (64, 0.05)])
def test_auto_has_closed_forms_at_small_steps(solver, form, steps, excess):
    """S10: the multiples of a known family of two-stage Runge-Kutta methods."""
    settings = Settings(solver=solver, steps=steps, schedule="edm", dtype=torch.float64)
    sigmas = settings.sigmas()
    weights = auto(settings.solver_for(sigmas, None), sigmas).weights[: steps // 2]
    for (weight,), (now, after) in zip(weights, pairwise(sigmas.tolist()), strict=False):
        assert 1 < weight / form(after / now) < 1 + excess


@pytest.mark.parametrize(("scale", "least"), [(0.5, None), (2.0, None), (8.0, 1.5), (20.0, 10.0)])
def test_auto_warns_of_data_that_are_too_wide(recwarn, scale, least):
    """S13: Gaussian data, Heun, sigma_max 5, 8 steps: the error grows 1.9-fold, 13-fold."""
    unit = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = dict(steps=8, sigma_max=5.0, dtype=torch.float64)

    def model(x, sigma, labels):
        return x * scale**2 / (scale**2 + sigma**2)

    noise = unit / 5 * math.sqrt(25 + scale**2)  # whose exact solution ends at scale * unit
    auto_error, plain_error = (
        (sample(model, noise, erk=erk, **chosen) - scale * unit).norm() for erk in ("auto", None)
    )
    texts = [str(one.message) for one in recwarn.list]
    if least is None:
        assert not texts and auto_error < plain_error
        return
    assert len(texts) == 1 and "erk='auto' multiplies the error of this solver" in texts[0]
    assert recwarn.list[0].filename == __file__
    settings = Settings(**chosen)
    sigmas = settings.sigmas()
    predicted = error_ratio(settings.solver_for(sigmas, None), sigmas, scale)
    assert auto_error / plain_error > least
    assert predicted > least


@pytest.mark.parametrize("solver", ["unipc", "deis", "dpmpp", "ipndm"])
def test_auto_that_does_nothing_says_so(solver):
    """N11."""

    def model(x, sigma, labels):
        return x / (1 + 4 * sigma**2)

    with pytest.warns(UserWarning, match="the samples are the plain solver's: take heun or dpm2"):
        sample(model, torch.ones(1, 2), solver=solver, steps=6, erk="auto")

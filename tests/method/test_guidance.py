"""ERK-Guid: third order on linear problems, off where it must be off, sample by sample."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import gaussian, linear, linear_drift, mixed_rates

import erk
from erk.method.fields import SCALE_NAMES
from erk.method.guidance import SCALES, ErkGuid, alpha, erk_guid, memoryless, unguided
from erk.method.point import Point, Step
from erk.method.sampler import steps
from erk.method.solvers import heun

SHAPES = [(5, 2), (4, 3, 4, 4)]


def linear_error(count, guidance):
    """|x - exact| for x' = -x from sigma 2 to 1, which stays clear of cancellations."""
    sigmas = torch.linspace(2, 1, count + 1, dtype=torch.float64)
    start = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    *_, (x, _) = steps(linear_drift(-1.0), start, sigmas, heun, guidance)
    return (x - start * math.e).norm().item()


@pytest.mark.parametrize(
    ("guidance", "order"), [(unguided, 2), (ErkGuid(1 / math.sqrt(6), 0.0), 3)], ids=["off", "on"]
)
def test_guided_heun_is_third_order_on_linear_odes(guidance, order):
    """w_stiff = 1/sqrt(6) cancels the leading error term (Eq. 45-46)."""
    counts = [32, 64, 128, 256]
    errors = [linear_error(count, guidance) for count in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_guidance_is_bitwise_the_plain_solver(shape):
    """w_stiff = 0, and a gate that never opens, leave every bit unchanged."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = erk.sample(linear(0.3), noise, steps=6)
    assert torch.equal(erk.sample(linear(0.3), noise, steps=6, w_stiff=0.0), plain)
    assert torch.equal(erk.sample(linear(0.3), noise, steps=6, w_stiff=1.0, w_con=1e9), plain)
    assert not torch.equal(erk.sample(linear(0.3), noise, steps=6, w_stiff=1.0, w_con=0.1), plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stiff_sample_leaves_its_batch_mates_alone(shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model = mixed_rates(5.0, 0.01)
    plain = erk.sample(model, noise, steps=8, sigma_max=3.0)
    guided = erk.sample(model, noise, steps=8, sigma_max=3.0, w_stiff=0.5, w_con=1.0)
    assert torch.equal(guided[1:], plain[1:]) and not torch.equal(guided[0], plain[0])


def test_the_order_of_the_pair_does_not_matter():
    torch.manual_seed(0)
    a, b = (Point(torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.tensor(1.0)) for _ in "ab")
    h, x = torch.tensor(0.3), torch.randn(3, 2, 2)
    one = erk_guid(Step(x, a, twin=b, h=h), 1.0, 0.1)
    # the slope always takes the drift at the start of the step, so only the pair is swapped
    swapped = Step(x, Point(b.x, a.f, a.sigma), twin=Point(a.x, b.f, b.sigma), h=h)
    assert torch.equal(one, erk_guid(swapped, 1.0, 0.1)) and not torch.equal(one, x)


def test_equal_points_and_equal_drifts_are_not_stiff():
    x = torch.ones(2, 3)
    same = Point(x, x, torch.tensor(1.0))
    for twin in (same, Point(x + 1, x, torch.tensor(1.0))):
        step = Step(x, same, twin=twin, h=torch.tensor(1.0))
        assert torch.equal(erk_guid(step, 5.0, 0.0), x)


def test_a_step_without_a_pair_is_left_alone_once():
    """The first step has none; a solver that never gives one is refused."""
    x = torch.ones(2, 3)
    first = Step(x, Point(x, x, torch.tensor(1.0)))
    assert torch.equal(erk_guid(first, 1.0, 0.0), x)
    assert torch.equal(ErkGuid(1.0, 0.0)(first, None)[0], x)
    with pytest.raises(ValueError, match="never gives ERK-Guid a pair"):
        ErkGuid(1.0, 0.0)(first._replace(index=1), None)


def test_a_function_of_the_step_is_a_guidance():
    sigmas = torch.linspace(2, 1, 6, dtype=torch.float64)
    start = torch.ones(1, 2, dtype=torch.float64)
    rule = memoryless(lambda step: erk_guid(step, 0.4, 0.0))
    ends = [
        list(steps(linear_drift(-1.0), start, sigmas, heun, guidance))[-1][0]
        for guidance in (rule, ErkGuid(0.4, 0.0))
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guidance_keeps_the_dtype(dtype):
    x0 = erk.sample(linear(0.3), torch.randn(2, 3), steps=5, w_stiff=1.0, dtype=dtype)
    assert x0.dtype == dtype


def test_alpha_is_smooth_and_exact():
    z = torch.tensor([-3.0, -0.31, -0.29, -1e-3, 0.0, 1e-6, 0.29, 0.31, 2.0], dtype=torch.float64)
    safe = torch.where(z == 0, 1.0, z)
    exact = torch.where(z == 0, 0.0, torch.expm1(safe) / safe - 1 - z / 2)
    assert torch.allclose(alpha(z), exact, rtol=1e-5, atol=1e-12)
    assert alpha(torch.tensor(1e-4)).item() == pytest.approx(1e-8 / 6, rel=1e-3)


def test_scales_differ():
    noise = torch.randn(2, 3)
    ends = [
        erk.sample(gaussian, noise, steps=6, w_stiff=0.5, w_con=0.3, erk_scale=scale)
        for scale in SCALES
    ]
    assert (*SCALES,) == SCALE_NAMES
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(ends, 2))

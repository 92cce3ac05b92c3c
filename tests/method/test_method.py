"""Properties of schedules, solvers, ERK-Guid and model guidance, on cases with known answers."""

import math

import numpy as np
import pytest
import torch
from golden_data import ref

import erk
from erk.method.drift import GuidedDrift, NonFiniteError
from erk.method.guidance import erk_guid, unguided
from erk.method.point import Point, Step
from erk.method.sampler import solve, steps
from erk.method.schedule import make_schedule
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS

SHAPES = [(5, 2), (4, 3, 4, 4)]


def linear_denoiser(rate):
    """The denoiser whose drift is f = rate x: D = (1 - rate sigma) x."""
    return lambda x, sigma, labels: (1 - rate * sigma) * x


def linear_error(solver, count, rate=-1.0, **settings):
    """|x0 - exact| for x' = rate x from sigma 2 to 1; rate (2 - 1) stays clear of cancellations."""
    grid = torch.linspace(2, 1, count + 1, dtype=torch.float64).tolist()
    noise = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    drift = DoubleDrift(rate)
    plan = Settings(solver=solver, schedule=grid, dtype=torch.float64, **settings)
    guidance = plan.correction(plan.sigmas()) or unguided
    states = [x for x, _ in steps(drift, noise * 2, plan.sigmas(), SOLVERS[solver], guidance)]
    return (states[-1] - noise * 2 * math.exp(-rate)).norm().item()


class DoubleDrift:
    """f = rate x in float64 throughout (networks see float32, which would hide the order)."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, x, sigma):
        return Point(x, self.rate * x, sigma)


def order(solver, **settings):
    counts = [32, 64, 128, 256]
    errors = [linear_error(solver, n, **settings) for n in counts]
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("heun", 2)])
def test_convergence_order(solver, expected):
    assert order(solver) == pytest.approx(expected, abs=0.06)


def test_guided_heun_is_third_order_on_linear_odes():
    """w_stiff = 1/sqrt(6) cancels the leading error term (Eq. 45-46)."""
    assert order("heun", w_stiff=1 / math.sqrt(6), w_con=0.0) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_guidance_is_bitwise_the_plain_solver(shape):
    """w_stiff = 0, and a gate that never opens, leave every bit as it was."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = erk.sample(linear_denoiser(0.3), noise, steps=6)
    assert torch.equal(erk.sample(linear_denoiser(0.3), noise, steps=6, w_stiff=0.0), plain)
    shut = erk.sample(linear_denoiser(0.3), noise, steps=6, w_stiff=1.0, w_con=1e9)
    assert torch.equal(shut, plain)
    opened = erk.sample(linear_denoiser(0.3), noise, steps=6, w_stiff=1.0, w_con=0.1)
    assert not torch.equal(opened, plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stiff_sample_leaves_its_batch_mates_alone(shape):
    def denoiser(x, sigma, labels):
        rate = torch.full((len(x), *[1] * (x.ndim - 1)), 0.01)
        rate[0] = 5.0
        return (1 - rate * sigma) * x

    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain = erk.sample(denoiser, noise, steps=8, sigma_max=3.0)
    guided = erk.sample(denoiser, noise, steps=8, sigma_max=3.0, w_stiff=0.5, w_con=1.0)
    assert torch.equal(guided[1:], plain[1:]) and not torch.equal(guided[0], plain[0])


def test_order_of_the_pair_does_not_matter():
    torch.manual_seed(0)
    a, b = (Point(torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.tensor(1.0)) for _ in "ab")
    h, x = torch.tensor(0.3), torch.randn(3, 2, 2)
    one = erk_guid(Step(x, a, twin=b, h=h), 1.0, 0.1)
    # the slope always takes the drift at the start of the step, so only the pair is exchanged
    exchanged = Step(x, Point(b.x, a.f, a.sigma), twin=Point(a.x, b.f, b.sigma), h=h)
    swapped = erk_guid(exchanged, 1.0, 0.1)
    assert torch.equal(one, swapped) and not torch.equal(one, x)


def test_equal_points_and_equal_drifts_are_not_stiff():
    x = torch.ones(2, 3)
    same = Point(x, x, torch.tensor(1.0))
    other = Point(x + 1, x, torch.tensor(1.0))
    for twin in (same, other):
        step = Step(x, same, twin=twin, h=torch.tensor(1.0))
        assert torch.equal(erk_guid(step, 5.0, 0.0), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guidance_keeps_the_dtype(dtype):
    x0 = erk.sample(linear_denoiser(0.3), torch.randn(2, 3), steps=5, w_stiff=1.0, dtype=dtype)
    assert x0.dtype == dtype


def test_evaluations_are_counted():
    def run(count, solver="heun", schedule="edm", **guided):
        drift = GuidedDrift(
            linear_denoiser(0.3), None, guided.pop("guide_model", None),
            guided.get("guidance", 1.0), guided.get("guidance_interval"),
        )  # fmt: skip
        plan = Settings(solver=solver, schedule=schedule, steps=count, **guided)
        solve(drift, torch.ones(1, 2), plan)
        return drift.nfe, drift.guide_nfe

    assert run(32) == (63, 0)  # 31 Heun steps and a last Euler step
    assert run(32, solver="euler") == (32, 0)
    assert run(32, w_stiff=1.0) == (63, 0)  # ERK-Guid is free
    assert run(3, schedule="polynomial") == (6, 0)  # Table 4's first column
    guide = linear_denoiser(0.2)
    assert run(32, guide_model=guide, guidance=2.0) == (63, 63)
    assert run(32, guide_model=guide, guidance=1.0) == (63, 0)
    nfe, guide_nfe = run(32, guide_model=guide, guidance=2.0, guidance_interval=(0.3, 5.0))
    assert nfe == 63 and 0 < guide_nfe < 63


def test_model_guidance_extrapolates_and_respects_its_interval():
    x, sigma = torch.ones(1, 2), torch.tensor(0.5)
    main, guide = linear_denoiser(0.2), linear_denoiser(0.8)
    d_main, d_guide = main(x, sigma, None), guide(x, sigma, None)
    drift = GuidedDrift(main, None, guide, 3.0, interval=(0.4, 0.5))
    extrapolated = d_guide + 3 * (d_main - d_guide)
    assert torch.allclose(drift(x, sigma).f, (x - extrapolated) / sigma)
    for outside in (0.4, 0.51):  # open below, closed above
        sigma = torch.tensor(outside)
        assert torch.equal(drift(x, sigma).f, (x - main(x, sigma, None)) / sigma)


def test_the_last_step_gives_the_denoised_state_unguided():
    noise = torch.randn(2, 3)
    seen = []

    def model(x, sigma, labels):
        seen.append((1 - 0.5 * sigma) * x)
        return seen[-1]

    trace = erk.Trace()
    x0 = erk.sample(model, noise, steps=4, w_stiff=1.0, w_con=0.0, callback=trace)
    assert torch.allclose(x0, seen[-1], atol=1e-6)
    assert trace.result()["gate"].isnan().all(1).tolist() == [True, False, False, True]


def test_trajectory_and_trace():
    noise = torch.randn(3, 2, 2, 2)
    arguments = dict(steps=5, w_stiff=0.5, w_con=0.01)
    seen = erk.Trace()
    x0 = erk.sample(linear_denoiser(0.1), noise, callback=seen, **arguments)
    trace = seen.result()
    states = list(erk.trajectory(linear_denoiser(0.1), noise, **arguments))
    assert len(states) == 5 and [state.index for state in states] == [0, 1, 2, 3, 4]
    assert torch.equal(states[0].step.start.x, noise * 80) and torch.equal(states[-1].x, x0)
    stiffness = torch.stack([state.stiffness for state in states])
    assert torch.equal(stiffness[1:4], trace["stiffness"][1:4])
    assert set(trace) >= {"stiffness", "gate", "dx", "df", "cosine", "push"}
    assert all(value.shape == (5, 3) for value in trace.values())
    inner = trace["stiffness"][1:-1]
    assert torch.allclose(inner, torch.full_like(inner, 0.1), rtol=1e-3)
    assert torch.allclose(trace["cosine"][1:-1].abs(), torch.ones(3, 3), atol=1e-4)


@pytest.mark.parametrize(("name", "rho"), [("polynomial", 7), ("polynomial", 5), ("logsnr", None)])
def test_schedules_equal_the_originals(name, rho):
    for nodes in (2, 4, 5, 6, 7, 9, 11):
        theirs = ref("schedules")[f"{name}_rho{rho or 7}_n{nodes}_0.002_80.0"].astype(np.float64)
        ours = make_schedule(name, nodes - 1, rho=rho).numpy()
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # theirs are float32


def test_edm_schedule_ends_exactly_where_asked():
    sigmas = make_schedule("edm", 32)
    assert (len(sigmas), sigmas[0], sigmas[-2], sigmas[-1]) == (33, 80.0, 0.002, 0.0)
    assert (sigmas.diff() < 0).all()


BAD = {
    "unknown solver 'heum'; choose one of euler, heun, dpm2": dict(solver="heum"),
    "unknown schedule 'edn'": dict(schedule="edn"),
    "needs at least 2 steps, not 1": dict(steps=1),
    "whole number": dict(steps=6.5),
    "0 < sigma_min < sigma_max": dict(sigma_min=-0.1),
    "0 < sigma_min < sigma_max < inf": dict(sigma_min=80.0),
    "rho must be positive": dict(rho=0.0),
    "takes no rho": dict(schedule="logsnr", rho=7.0),
    "strictly decreasing": dict(schedule=[1.0, 2.0, 0.0]),
    "at least two": dict(schedule=[1.0]),
    "set S_churn to 0": dict(w_stiff=1.0, S_churn=1.0),
    "w_con must not be negative": dict(w_con=-1.0),
    "guidance must be a finite number": dict(guidance=math.nan),
    "guidance_interval must be": dict(guidance_interval=(2.0, 1.0)),
    "has no option 'order'; it takes none": dict(solver_options={"order": 2}),
    "has no option 'r'; it takes order, mode": dict(solver="deis", solver_options={"r": 0.5}),
    "order of the solver 'deis' must be 1 to 4": dict(solver="deis", solver_options={"order": 5}),
    "r of the solver 'dpm2' must be": dict(solver="dpm2", solver_options={"r": 0}),
    "must be tab or rhoab": dict(solver="deis", solver_options={"mode": "x"}),
    "must be true or false": dict(solver="dpmpp", solver_options={"predict_x0": 1}),
    "erk_scale must be": dict(erk_scale="cubic"),
    "ERK-Proj works on model guidance": dict(erk_proj=True),
    "exclude each other": dict(w_stiff=1.0, pc_snr=0.1),
    "defined for the plain heun": dict(solver="euler", adaptive_tau=1.0),
    "ends at 0 already": dict(denoise_to_zero=True),
    "needs a network with a time of its own": dict(schedule="discrete"),
    "guidance 2 needs a guiding network": dict(guidance=2.0),
}


@pytest.mark.parametrize(("message", "settings"), BAD.items(), ids=list(BAD))
def test_bad_settings_are_refused_with_one_sentence(message, settings):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        erk.sample(linear_denoiser(1.0), torch.ones(1, 2), **settings)
    assert "\n" not in str(caught.value)


def test_nan_is_reported_with_its_sample_and_step():
    def model(x, sigma, labels):
        denoised = 0.5 * x
        if sigma < 1:
            denoised[2] = math.nan
        return denoised

    with pytest.raises(NonFiniteError) as caught:
        erk.sample(model, torch.ones(4, 2), steps=8)
    sigmas = make_schedule("edm", 8)
    assert caught.value.sample == 2
    assert sigmas[caught.value.step + 1] < 1 <= sigmas[caught.value.step - 1]


@pytest.mark.parametrize("answer", [None, torch.zeros(1), torch.zeros(4, 3)])
def test_a_denoiser_that_answers_in_another_shape_is_told(answer):
    with pytest.raises(ValueError, match="must return D"):
        erk.sample(lambda x, sigma, labels: answer, torch.randn(4, 2), steps=3)

"""The sampling loop: counted evaluations, the last step, pairs and solvers of the user's."""

import pytest
import torch
from problems import gaussian, gaussian_drift, gaussian_solution, linear

import erk
from erk.method.drift import GuidedDrift
from erk.method.point import Point, Step
from erk.method.sampler import solve, steps
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS, heun


def evaluations(count, *, guide_model=None, **settings):
    """(NFE of the network, NFE of the guide) of one run."""
    plan = Settings(steps=count, **settings)
    drift = GuidedDrift(linear(0.3), None, guide_model, plan.guidance, plan.guidance_interval)
    solve(drift, torch.ones(1, 2), plan)
    return drift.nfe, drift.guide_nfe


def test_evaluations_are_counted_by_the_drift():
    assert evaluations(32) == (63, 0)  # 31 Heun steps and a last Euler step
    assert evaluations(32, solver="euler") == (32, 0)
    assert evaluations(32, w_stiff=1.0) == (63, 0)  # ERK-Guid is free
    assert evaluations(32, erk="auto") == (63, 0)
    assert evaluations(3, schedule="polynomial") == (6, 0)  # Table 4's first column
    guide = linear(0.2)
    assert evaluations(32, guide_model=guide, guidance=2.0) == (63, 63)
    assert evaluations(32, guide_model=guide, guidance=1.0) == (63, 0)
    nfe, guide_nfe = evaluations(32, guide_model=guide, guidance=2.0, guidance_interval=(0.3, 5.0))
    assert nfe == 63 and 0 < guide_nfe < 63


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_step_to_zero_is_eulers_and_never_guided(solver):
    denoised = []

    def model(x, sigma, labels):
        denoised.append(gaussian(x, sigma))
        return denoised[-1]

    trace = erk.Trace()
    x0 = erk.sample(
        model, torch.ones(1, 2), solver=solver, schedule="edm", steps=5, w_stiff=0.5, w_con=0.0,
        callback=trace,
    )  # fmt: skip
    assert torch.allclose(x0, denoised[-1], atol=1e-6)
    if solver == "heun":
        no_pair = trace.result()["gate"].isnan().all(1).tolist()
        assert no_pair == [True, False, False, False, True]


def test_the_trace_sees_the_stiffness_of_a_linear_problem():
    trace = erk.Trace()
    noise = torch.randn(3, 2, 2, 2)
    erk.sample(linear(0.1), noise, steps=5, w_stiff=0.5, w_con=0.01, callback=trace)
    rows = trace.result()
    assert all(value.shape == (5, 3) for value in rows.values())
    inner = rows["stiffness"][1:-1]
    assert torch.allclose(inner, torch.full_like(inner, 0.1), rtol=1e-3)
    assert torch.allclose(rows["cosine"][1:-1].abs(), torch.ones(3, 3), atol=1e-4)


def test_steps_yields_every_state():
    sigmas = torch.linspace(2, 1, 6, dtype=torch.float64)
    states = list(steps(gaussian_drift, torch.ones(1, 1).double(), sigmas, heun))
    assert len(states) == 5
    assert states[-1][0].item() == pytest.approx(gaussian_solution(1.0, 2.0, 1.0), abs=1e-3)


def test_a_pair_chosen_by_the_caller():
    """Heun with the previous node as its pair, as the multistep solvers have it."""
    is_first = []

    def choose(step, previous):
        is_first.append(previous is None)
        if previous is None:
            return None, None
        return previous.start, step.start.sigma - previous.start.sigma

    x0 = erk.sample(gaussian, torch.ones(1, 2), steps=5, w_stiff=0.3, w_con=0.0, twin=choose)
    assert is_first == [True, False, False, False]
    assert not torch.equal(x0, erk.sample(gaussian, torch.ones(1, 2), steps=5))


def midpoint(drift, x, sigma, sigma_next, memory=None):
    start = drift(x, sigma)
    middle = drift(x + (sigma_next - sigma) / 2 * start.f, (sigma + sigma_next) / 2)
    x_next = x + (sigma_next - sigma) * middle.f
    return Step(x_next, start, sigma_next, twin=middle, h=sigma - sigma_next)


def unfinished(*arguments):
    """`midpoint` without what the loop knows anyway."""
    return midpoint(*arguments)._replace(sigma_next=None)


@pytest.mark.parametrize("solver", [midpoint, unfinished])
def test_a_solver_of_the_users(solver):
    noise = torch.ones(2, 3)
    guided = erk.sample(gaussian, noise, solver=solver, steps=6, w_stiff=0.3, w_con=0.0)
    assert not torch.equal(guided, erk.sample(gaussian, noise, solver=solver, steps=6))
    states = erk.trajectory(gaussian, noise, solver=solver, steps=6)
    assert [state.index for state in states] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("part", ["x", "start", "twin", "origin"])
def test_a_solver_whose_tensors_have_another_form_is_refused(part):
    def halved(drift, x, sigma, sigma_next, memory):
        step = heun(drift, x, sigma, sigma_next, memory)
        half = {"x": step.x[:1], "start": Point(x, step.start.f[:1], sigma),
                "twin": Point(x[:1], step.start.f, sigma), "origin": x[:1]}  # fmt: skip
        return step._replace(**{part: half[part]})

    with pytest.raises(ValueError, match=r"tensors \[2, 3\], as its x is, not .*\[1, 3\]"):
        erk.sample(lambda x, sigma, labels: x / 2, torch.ones(2, 3), solver=halved, steps=3)


def test_a_solver_without_a_pair_is_refused_with_erk_guid():
    def bare(*arguments):
        return midpoint(*arguments)._replace(twin=None, h=None)

    erk.sample(gaussian, torch.ones(2, 3), solver=bare, steps=6)
    with pytest.raises(ValueError, match="never gives ERK-Guid a pair"):
        erk.sample(gaussian, torch.ones(2, 3), solver=bare, steps=6, w_stiff=0.3)


def test_noise_is_injected_between_s_min_and_s_max_only():
    levels = []

    def model(x, sigma, labels):
        levels.append(round(sigma.item(), 4))
        return gaussian(x, sigma)

    chosen = dict(solver="euler", steps=6, S_churn=1.0, S_min=0.1, S_max=10.0)
    x0 = erk.sample(model, torch.ones(2, 3), randn_like=torch.zeros_like, **chosen)
    sigmas = Settings(solver="euler", steps=6).sigmas()[:-1].tolist()
    raised = [s * (1 + 1 / 6) if 0.1 <= s <= 10 else s for s in sigmas]
    assert levels == pytest.approx(raised, abs=1e-3) and x0.isfinite().all()

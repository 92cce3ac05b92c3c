"""Every solver: order, pair, evaluations, options, and what no sample may notice of another."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import erk
from erk.method.guidance import alpha, erk_push
from erk.method.point import Point
from erk.method.sampler import solve, steps
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS, analytic_first, make_solver
from erk.method.stiffness import stiffness

ORDERS = {
    ("euler", ()): 1,
    ("heun", ()): 2,
    ("dpm2", ()): 2,
    ("dpm2", (("r", 0.3),)): 2,
    ("dpm2", (("predict_x0", True),)): 2,
    ("dpm2", (("r", 0.3), ("predict_x0", True))): 2,
    ("ipndm", (("order", 2),)): 2,
    ("ipndm", (("order", 3),)): 3,
    ("ipndm", (("order", 4),)): 4,
    ("ipndm_v", (("order", 2),)): 2,
    ("ipndm_v", (("order", 3),)): 3,  # as published: exact on the equal steps used here
    ("deis", (("order", 1),)): 1,
    ("deis", (("order", 2),)): 2,
    ("deis", (("order", 3),)): 3,
    ("deis", (("order", 4),)): 4,
    ("deis", (("order", 4), ("mode", "rhoab"))): 4,
    ("dpmpp", (("order", 1),)): 1,
    ("dpmpp", (("order", 2), ("lower_order_final", False))): 2,
    ("dpmpp", (("order", 3), ("lower_order_final", False))): 2,  # as published, see its docstring
    ("dpmpp", (("order", 3), ("lower_order_final", False), ("predict_x0", False))): 2,
    ("unipc", (("order", 1), ("lower_order_final", False))): 2,
    ("unipc", (("order", 2), ("lower_order_final", False))): 3,
    ("unipc", (("order", 3), ("lower_order_final", False), ("variant", "bh1"))): 4,
}
STD = 0.7


def gaussian_drift(x, sigma):
    """Data of deviation STD: f = sigma x / (STD^2 + sigma^2), so 0 < sigma df/dx < 1."""
    return Point(x, sigma / (STD**2 + sigma**2) * x, sigma)


def exact(x, sigma, sigma_next):
    return x * ((STD**2 + sigma_next**2) / (STD**2 + sigma**2)) ** 0.5


def warm_started(name, options, nodes):
    """Solve from 1 at nodes[0]; the first 4 states, and the memory, are put on the exact solution.

    So the low orders of a multistep solver's first steps do not hide its own.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    solver, x, memory = make_solver(name, options, nodes), one, None
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(nodes)):
        step = solver(gaussian_drift, x, sigma, sigma_next, memory)
        x, memory = step.x, step.memory
        if i < 4:
            x = exact(one, nodes[0], sigma_next)
            if isinstance(memory, tuple) and not isinstance(memory, Point):
                states = [(exact(one, nodes[0], p.sigma), p.sigma) for p in memory]
                memory = tuple(gaussian_drift(*state) for state in states)
    return (x - exact(one, nodes[0], nodes[-1])).abs().item()


@pytest.mark.parametrize(("case", "expected"), ORDERS.items(), ids=str)
def test_convergence_order(case, expected):
    """Measured by regression, on equal steps in the solver's own variable, from an exact start."""
    name, options = case
    counts = np.array([24, 48, 96])
    low, high = (0.5, 2.0) if name == "unipc" else (2.0, 6.0)  # clear of the error's zeros
    errors = []
    for count in counts:
        share = torch.linspace(1, 0, count + 1, dtype=torch.float64)
        nodes = low + share * (high - low)
        if name in ("dpmpp", "unipc"):
            nodes = low * (high / low) ** share
        errors.append(warm_started(name, dict(options), nodes))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert expected - 0.3 < slope < expected + 0.6, errors


def counted(solver, count, **more):
    calls = []

    def model(x, sigma, labels):
        calls.append(sigma)
        return 0.5 * x

    erk.sample(model, torch.ones(1, 2), solver=solver, steps=count, **more)
    return len(calls)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_per_step(name):
    per_step = 2 if name in ("heun", "dpm2") else 1
    for count in (3, 6, 10):
        assert counted(name, count, schedule="polynomial") == per_step * count
        to_zero = counted(name, count, schedule="polynomial", denoise_to_zero=True)
        assert to_zero == per_step * count + 1
        assert counted(name, count, schedule="polynomial", afs=True) == per_step * count - 1
        assert counted(name, count, schedule="edm") == per_step * (count - 1) + 1
        assert counted(name, count, schedule="edm", w_stiff=1.0) == per_step * (count - 1) + 1


def test_evaluations_of_table_4():
    """NFE 6, 8, 10: 3, 4, 5 intervals for heun and dpm2, 6, 8, 10 for deis."""
    for nfe in (6, 8, 10):
        assert counted("heun", nfe // 2, schedule="polynomial") == nfe
        assert counted("dpm2", nfe // 2, schedule="polynomial") == nfe
        assert counted("deis", nfe, schedule="time_uniform") == nfe


@pytest.mark.parametrize("name", SOLVERS)
def test_unguided_is_bitwise_plain_and_guided_is_not(name):
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    model = gaussian_model
    plain = erk.sample(model, noise, solver=name, steps=8)
    assert torch.equal(erk.sample(model, noise, solver=name, steps=8, w_stiff=0.0), plain)
    shut = erk.sample(model, noise, solver=name, steps=8, w_stiff=0.5, w_con=1e9)
    assert torch.equal(shut, plain)
    assert not torch.equal(erk.sample(model, noise, solver=name, steps=8, w_stiff=0.5), plain)


def gaussian_model(x, sigma, labels):
    return STD**2 / (STD**2 + sigma**2) * x


ANYWHERE, ABOVE = (0.15, 8.0), (1.2, 8.0)  # sigma in units of the data's deviation
DERIVED = [  # where the sign of h is right, as the table of docs/theory.md says
    ("euler", {}, ANYWHERE),
    ("heun", {}, ANYWHERE),
    ("dpm2", {}, ANYWHERE),
    ("dpm2", {"predict_x0": True}, ANYWHERE),
    *[("dpm2", {"predict_x0": x0, "r": 0.35}, ANYWHERE) for x0 in (False, True)],
    *[("ipndm", {"order": n}, ANYWHERE) for n in (1, 2)],
    *[("ipndm", {"order": n}, ABOVE) for n in (3, 4)],
    *[("ipndm_v", {"order": n}, ANYWHERE) for n in (1, 2)],
    ("ipndm_v", {"order": 3}, ABOVE),
    *[("deis", {"order": n, "mode": "rhoab"}, ANYWHERE) for n in (1, 2)],
    *[("deis", {"order": n, "mode": "rhoab"}, ABOVE) for n in (3, 4)],
    *[("deis", {"order": n}, ABOVE) for n in (2, 3, 4)],
    ("dpmpp", {"order": 1}, ANYWHERE),
    ("dpmpp", {"order": 2, "lower_order_final": False}, (0.15, 1.1)),
    ("dpmpp", {"order": 3, "lower_order_final": False}, (0.5, 1.7)),
    ("unipc", {"order": 1}, ANYWHERE),
    ("unipc", {"order": 2, "lower_order_final": False}, (0.15, 0.6)),
    ("unipc", {"order": 3, "lower_order_final": False}, (0.55, 1.3)),
]


@pytest.mark.parametrize(("name", "options", "where"), DERIVED, ids=str)
def test_the_pair_lowers_the_local_error(name, options, where):
    """docs/theory.md: the sign of h makes the correction point along the solver's own error.

    Teacher forcing on the linear ODE of Gaussian data: every step starts on the exact solution,
    so its error is local. A correction of the right size must lower it, wherever sigma lies in
    the solver's range.
    """
    for place in np.geomspace(*where, 12):
        behind = torch.arange(6, -3, -1, dtype=torch.float64)
        nodes = STD * place * 1.25**behind
        if name.startswith("ipndm"):  # made for equal steps: elsewhere their own weights are off
            nodes = STD * place * (1 + 0.2 * behind)
        solver = make_solver(name, options, nodes)
        memory = None
        for sigma, sigma_next in itertools.pairwise(nodes[:-1]):
            x = exact(torch.ones(1, 1, dtype=torch.float64), nodes[0], sigma)
            step = solver(gaussian_drift, x, sigma, sigma_next, memory)
            memory = step.memory
        assert sigma.item() == pytest.approx(STD * place)
        error = exact(x, sigma, sigma_next) - step.x
        push = erk_push(step, 1.0, 0.0).push
        w2 = 0.5 * error.norm() / push.norm()
        assert (error + w2 * push).norm() < 0.6 * error.norm()


def test_data_prediction_is_noise_prediction_in_one_over_sigma():
    """docs/theory.md: for data of deviation 1, x / sigma obeys the same ODE in u = 1 / sigma."""
    step = torch.tensor([0.8, 1.1], dtype=torch.float64)  # downwards in sigma, or upwards in u
    unit = lambda x, s: Point(x, s / (1 + s**2) * x, s)  # noqa: E731
    one = torch.ones(1, 1, dtype=torch.float64)
    up = SOLVERS["dpm2"](unit, one, step[0], step[1])
    down = SOLVERS["dpm2"](unit, one / step[0], 1 / step[0], 1 / step[1], predict_x0=True)
    assert torch.allclose(down.x, up.x / step[1], rtol=1e-14)
    assert down.h < 0 < 1 / step[0] - 1 / step[1]


def test_stiffness_of_every_pair_on_a_linear_field():
    """All pairs see |df/dx| exactly where the field is linear with a constant slope."""
    for name in SOLVERS:
        nodes = torch.linspace(2, 1, 9, dtype=torch.float64)
        solver = make_solver(name, {}, nodes)
        x, memory = torch.ones(2, 3, dtype=torch.float64), None
        for sigma, sigma_next in itertools.pairwise(nodes):
            step = solver(lambda x, s: Point(x, 0.3 * x, s), x, sigma, sigma_next, memory)
            x, memory = step.x, step.memory
            if step.twin is not None:
                rho = stiffness(step.start, step.twin).rho
                assert torch.allclose(rho, torch.full_like(rho, 0.3))
        assert step.twin is not None, name


def test_alpha_is_smooth_and_exact():
    z = torch.tensor([-3.0, -0.31, -0.29, -1e-3, 0.0, 1e-6, 0.29, 0.31, 2.0], dtype=torch.float64)
    safe = torch.where(z == 0, 1.0, z)
    exact_alpha = torch.where(z == 0, 0.0, torch.expm1(safe) / safe - 1 - z / 2)
    assert torch.allclose(alpha(z), exact_alpha, rtol=1e-5, atol=1e-12)
    assert alpha(torch.tensor(1e-4)).item() == pytest.approx(1e-8 / 6, rel=1e-3)


def test_scales_differ_and_keep_the_gate():
    noise = torch.randn(2, 3)
    ends = [
        erk.sample(gaussian_model, noise, steps=6, w_stiff=0.5, w_con=0.3, erk_scale=scale)
        for scale in ("quadratic", "abs", "alpha")
    ]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(ends, 2))


def test_a_twin_of_ones_own():
    """Heun with the previous node as its pair, as the multistep solvers have it."""
    seen = []

    def choose(step, before):
        seen.append(before is None)
        if before is None:
            return None, None
        return before.start, step.start.sigma - before.start.sigma

    x0 = erk.sample(gaussian_model, torch.ones(1, 2), steps=5, w_stiff=0.3, w_con=0.0, twin=choose)
    assert seen == [True, False, False, False]
    assert not torch.equal(x0, erk.sample(gaussian_model, torch.ones(1, 2), steps=5))


def my_midpoint(drift, x, sigma, sigma_next, memory=None):
    from erk.method.point import Step

    start = drift(x, sigma)
    middle = drift(x + (sigma_next - sigma) / 2 * start.f, (sigma + sigma_next) / 2)
    x_next = x + (sigma_next - sigma) * middle.f
    return Step(x_next, start, sigma_next, twin=middle, h=sigma - sigma_next)


def test_a_solver_of_ones_own_and_one_without_a_pair():
    noise = torch.ones(2, 3)
    guided = erk.sample(gaussian_model, noise, solver=my_midpoint, steps=6, w_stiff=0.3, w_con=0.0)
    assert not torch.equal(guided, erk.sample(gaussian_model, noise, solver=my_midpoint, steps=6))

    def bare(*arguments):
        return my_midpoint(*arguments)._replace(twin=None, h=None)

    erk.sample(gaussian_model, noise, solver=bare, steps=6)
    with pytest.raises(ValueError, match="never gives ERK-Guid a pair"):
        erk.sample(gaussian_model, noise, solver=bare, steps=6, w_stiff=0.3)


def test_afs_replaces_the_first_drift():
    x, sigma = torch.ones(1, 2), torch.tensor(3.0)
    solver, sigma_next = analytic_first(make_solver("heun")), torch.tensor(2.0)
    step = solver(lambda x, s: Point(x, 7 * x, s), x, sigma, sigma_next, None)
    assert torch.allclose(step.start.f, x / math.sqrt(10))
    assert torch.equal(step.memory[0].f, 7 * (x - step.start.f))
    again = solver(lambda x, s: Point(x, 7 * x, s), step.x, sigma_next, sigma_next / 2, step.memory)
    assert torch.equal(again.start.f, 7 * step.x) and again.twin is step.memory[0]


def test_one_network_as_main_and_guide_shares_its_call():
    calls = []

    def model(x, sigma, labels):
        calls.append(len(x))
        return 0.5 * x + labels.mean(1, keepdim=True)

    noise, labels = torch.randn(3, 2), torch.eye(3)
    zeros = torch.zeros(3, 3)
    how = dict(guidance=2.0, steps=4, guide_labels=zeros)
    shared = erk.sample(model, noise, labels, guide_model=model, **how)
    assert calls == [6] * 7
    apart = erk.sample(model, noise, labels, guide_model=lambda *a: model(*a), **how)
    assert torch.allclose(shared, apart, atol=1e-5)


def test_erk_proj_keeps_the_stiff_part_of_guidance():
    """eta -> 1 at small w_stiff is plain guidance; at a large one only <g, v> v is left."""
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def guide(x, sigma, labels):
        return 0.8 * gaussian_model(x, sigma, labels) + 0.1

    how = dict(guide_model=guide, guidance=2.0, steps=6)
    plain = erk.sample(gaussian_model, noise, **how)
    weak = erk.sample(gaussian_model, noise, erk_proj=True, w_stiff=1e-9, **how)
    strong = erk.sample(gaussian_model, noise, erk_proj=True, w_stiff=5.0, **how)
    first = [
        next(erk.trajectory(gaussian_model, noise, **how, **more)).x
        for more in ({}, {"erk_proj": True, "w_stiff": 5.0})
    ]
    assert torch.allclose(*first, rtol=1e-5)  # no pair yet: the first step is plainly guided
    assert torch.allclose(weak, plain, atol=1e-4)
    assert not torch.allclose(strong, plain, atol=1e-2)


def two_rates(x, sigma, labels):
    """A stiff first sample among mild ones."""
    rate = torch.full((len(x), *[1] * (x.ndim - 1)), 0.05)
    rate[0] = 3.0
    return x - sigma * rate * x / (1 + sigma)


def test_adaptive_steps_are_per_sample_and_counted():
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    plan = Settings(steps=12, adaptive_tau=0.5)
    drift = plan.drift(two_rates)
    together = solve(drift, noise, plan)
    plain = erk.sample(two_rates, noise, steps=12)
    assert torch.equal(together[1:], plain[1:]) and not torch.equal(together[0], plain[0])
    assert drift.nfe[1:].tolist() == [23] * 3 and 23 < drift.nfe[0] < 2 * 23
    alone = plan.drift(two_rates)
    single = solve(alone, noise[:1], plan)
    assert torch.equal(single[0], together[0]) and alone.nfe[0] == drift.nfe[0]


def test_adaptive_steps_count_the_guide_inside_its_interval_only():
    """All intervals but the first, which has no pair yet, are halved; counted by hand."""
    plan = Settings(steps=6, adaptive_tau=1e-6, guidance=1.5, guidance_interval=(0.0, 5.0))
    drift = plan.drift(two_rates, None, gaussian_model)
    solve(drift, torch.ones(1, 2), plan)
    nodes = plan.sigmas().tolist()[:-1]
    levels = [*nodes[:2], nodes[-1]]  # Heun's first step, and the last Euler step
    for high, low in itertools.pairwise(nodes[1:]):
        middle = (high + low) / 2
        levels += [high, middle, middle, low]
    assert drift.nfe.tolist() == [len(levels)] == [19]
    assert drift.guide_nfe.tolist() == [sum(level <= 5 for level in levels)]


def test_a_threshold_nobody_reaches_is_plain_heun():
    noise = torch.randn(2, 3)
    high = erk.sample(two_rates, noise, steps=8, adaptive_tau=1e9)
    assert torch.equal(high, erk.sample(two_rates, noise, steps=8))


def test_langevin_corrector():
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    assert counted("heun", 22, pc_snr=0.1) == 64  # 21 x 3 + 1, Table 11
    quiet = [
        erk.sample(gaussian_model, noise, steps=6, pc_snr=0.05, pc_stochastic=False)
        for _ in range(2)
    ]
    assert torch.equal(*quiet)
    draws = [torch.ones(2, 3)] * 5
    seeded = erk.sample(
        gaussian_model, noise, steps=6, pc_snr=0.05, randn_like=lambda x: draws.pop()
    )
    assert not draws and not torch.equal(seeded, quiet[0])
    plain = erk.sample(gaussian_model, noise, steps=6)
    tiny = erk.sample(gaussian_model, noise, steps=6, pc_snr=1e-4, pc_stochastic=False)
    assert torch.allclose(tiny, plain, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(SOLVERS)),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    split=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    count=st.integers(2, 6),
)
def test_a_sample_never_depends_on_its_batch_mates(name, shape, split, dtype, count):
    noise = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    how = dict(solver=name, steps=count, w_stiff=0.4, w_con=0.3, dtype=dtype)
    whole = erk.sample(gaussian_model, noise, **how)
    parts = [erk.sample(gaussian_model, part, **how) for part in noise.split(split)]
    assert whole.dtype == dtype and whole.shape == noise.shape
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_the_last_step_to_zero_is_euler_for_every_solver():
    for name in SOLVERS:
        seen = []

        def model(x, sigma, labels, seen=seen):
            seen.append(gaussian_model(x, sigma, labels))
            return seen[-1]

        how = dict(solver=name, schedule="edm", steps=5, w_stiff=0.5, w_con=0.0)
        x0 = erk.sample(model, torch.ones(1, 2), **how)
        assert torch.allclose(x0, seen[-1], atol=1e-6), name


def test_steps_yields_every_state():
    sigmas = torch.linspace(2, 1, 6, dtype=torch.float64)
    states = list(steps(gaussian_drift, torch.ones(1, 1).double(), sigmas, SOLVERS["heun"]))
    assert len(states) == 5
    assert states[-1][0].item() == pytest.approx(exact(1.0, 2.0, 1.0), abs=1e-3)

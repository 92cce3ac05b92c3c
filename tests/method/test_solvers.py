"""Every solver: its order, its pair, its evaluations; no sample depends on its batch mates."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import STD, gaussian, gaussian_drift, gaussian_solution

import erk
from erk.method.guidance import erk_guid, erk_push, memoryless, unguided
from erk.method.point import Point
from erk.method.sampler import steps
from erk.method.solvers import SOLVERS, analytic_first, make_solver
from erk.method.stiffness import stiffness

EVALUATIONS = {"heun": 2, "dpm2": 2}
"""Evaluations per step; 1 for the other solvers."""
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


def warm_started(name, options, nodes):
    """Solve from 1 at nodes[0]; the first 4 states, and the memory, are set to the exact solution.

    So the low orders of a multistep solver's first steps do not hide its order.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    solver, x, memory = make_solver(name, options, nodes), one, None
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(nodes)):
        step = solver(gaussian_drift, x, sigma, sigma_next, memory)
        x, memory = step.x, step.memory
        if i < 4:
            x = gaussian_solution(one, nodes[0], sigma_next)
            if isinstance(memory, tuple) and not isinstance(memory, Point):
                states = [(gaussian_solution(one, nodes[0], p.sigma), p.sigma) for p in memory]
                memory = tuple(gaussian_drift(*state) for state in states)
    return (x - gaussian_solution(one, nodes[0], nodes[-1])).abs().item()


@pytest.mark.parametrize(("case", "expected"), ORDERS.items(), ids=str)
def test_convergence_order(case, expected):
    """Measured by regression, on equal steps in the solver's variable, from an exact start."""
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
    per_step = EVALUATIONS.get(name, 1)
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
    model = gaussian
    plain = erk.sample(model, noise, solver=name, steps=8)
    assert torch.equal(erk.sample(model, noise, solver=name, steps=8, w_stiff=0.0), plain)
    shut = erk.sample(model, noise, solver=name, steps=8, w_stiff=0.5, w_con=1e9)
    assert torch.equal(shut, plain)
    assert not torch.equal(erk.sample(model, noise, solver=name, steps=8, w_stiff=0.5), plain)


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
    ("deis", {"order": 2}, ANYWHERE),  # up to a deviation between 1 and 3, as VP time has a scale
    *[("deis", {"order": n}, ABOVE) for n in (3, 4)],
    ("dpmpp", {"order": 1}, ANYWHERE),
    ("dpmpp", {"order": 2, "lower_order_final": False}, (0.15, 1.1)),
    ("dpmpp", {"order": 3, "lower_order_final": False}, (0.5, 1.7)),
    ("unipc", {"order": 1}, ANYWHERE),
    ("unipc", {"order": 2, "lower_order_final": False}, (0.15, 0.6)),
    ("unipc", {"order": 3, "lower_order_final": False}, (0.55, 1.3)),
]


@pytest.mark.parametrize(("name", "options", "where"), DERIVED, ids=str)
def test_the_pair_lowers_the_local_error(name, options, where):
    """docs/theory.md: the sign of h makes the correction point along the solver's error.

    Teacher forcing on the linear ODE of Gaussian data: every step starts on the exact solution,
    so its error is local. A correction of the right size must lower it, wherever sigma lies in
    the solver's range.
    """
    for level in np.geomspace(*where, 12):
        behind = torch.arange(6, -3, -1, dtype=torch.float64)
        nodes = STD * level * 1.25**behind
        if name.startswith("ipndm"):  # for equal steps: elsewhere their weights are off
            nodes = STD * level * (1 + 0.2 * behind)
        solver = make_solver(name, options, nodes)
        memory = None
        for sigma, sigma_next in itertools.pairwise(nodes[:-1]):
            x = gaussian_solution(torch.ones(1, 1, dtype=torch.float64), nodes[0], sigma)
            step = solver(gaussian_drift, x, sigma, sigma_next, memory)
            memory = step.memory
        assert sigma.item() == pytest.approx(STD * level)
        error = gaussian_solution(x, sigma, sigma_next) - step.x
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


def test_afs_replaces_the_first_drift():
    x, sigma = torch.ones(1, 2), torch.tensor(3.0)
    solver, sigma_next = analytic_first(make_solver("heun")), torch.tensor(2.0)
    step = solver(lambda x, s: Point(x, 7 * x, s), x, sigma, sigma_next, None)
    assert torch.allclose(step.start.f, x / math.sqrt(10))
    assert torch.equal(step.memory[0].f, 7 * (x - step.start.f))
    again = solver(lambda x, s: Point(x, 7 * x, s), step.x, sigma_next, sigma_next / 2, step.memory)
    assert torch.equal(again.start.f, 7 * step.x) and again.twin is step.memory[0]


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
    chosen = dict(solver=name, steps=count, w_stiff=0.4, w_con=0.3, dtype=dtype)
    complete = erk.sample(gaussian, noise, **chosen)
    parts = [erk.sample(gaussian, part, **chosen) for part in noise.split(split)]
    assert complete.dtype == dtype and complete.shape == noise.shape
    torch.testing.assert_close(torch.cat(parts), complete, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_repeated_levels_change_nothing(name):
    """F2: a step of length 0 keeps x, and its level counts once in multistep formulas."""
    levels = torch.tensor([10, 5, 5, 5, 2, 2, 1, 0.5, 0.5, 0.2], dtype=torch.float64)

    def ends(sigmas, guidance):
        solver = make_solver(name, {}, sigmas)
        drift = erk.Settings().drift(lambda x, sigma, _: x / (1 + 4 * sigma**2))
        *_, (x, _) = steps(drift, 10 * torch.eye(2, dtype=torch.float64), sigmas, solver, guidance)
        return x

    for guidance in (unguided, memoryless(partial(erk_guid, w_stiff=0.5, w_con=0.0))):
        repeated, once = ends(levels, guidance), ends(levels.unique_consecutive(), guidance)
        assert repeated.isfinite().all()
        if name == "heun" and guidance is not unguided:
            continue  # its pair comes from the step before, here of length 0
        torch.testing.assert_close(repeated, once, rtol=1e-6, atol=0)


def test_afs_does_not_replace_the_denoiser_of_a_single_step():
    """An interval that ends at 0 becomes D(x; sigma), which needs the network: 1 evaluation."""
    noise, calls = torch.ones(2, 3), []

    def model(x, sigma, labels):
        calls.append(sigma)
        return x / (1 + 4 * sigma**2)

    x0 = erk.sample(model, noise, schedule=[80.0, 0.0], afs=True)
    assert len(calls) == 1
    torch.testing.assert_close(x0, model(80 * noise, torch.tensor(80.0), None))

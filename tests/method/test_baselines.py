"""The paper's baselines: adaptive steps (Table 10) and the Langevin corrector (Table 11)."""

import itertools

import torch
from problems import damped_rates, gaussian

import erk
from erk.method.sampler import solve
from erk.method.settings import Settings


def test_adaptive_steps_are_per_sample_and_counted():
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    plan = Settings(steps=12, adaptive_tau=0.5)
    drift = plan.drift(damped_rates)
    together = solve(drift, noise, plan)
    plain = erk.sample(damped_rates, noise, steps=12)
    assert torch.equal(together[1:], plain[1:]) and not torch.equal(together[0], plain[0])
    assert drift.nfe[1:].tolist() == [23] * 3 and 23 < drift.nfe[0] < 2 * 23
    alone = plan.drift(damped_rates)
    single = solve(alone, noise[:1], plan)
    assert torch.equal(single[0], together[0]) and alone.nfe[0] == drift.nfe[0]


def test_adaptive_steps_count_the_guide_inside_its_interval_only():
    """All intervals but the first, which has no pair yet, are halved; counted by hand."""
    plan = Settings(steps=6, adaptive_tau=1e-6, guidance=1.5, guidance_interval=(0.0, 5.0))
    drift = plan.drift(damped_rates, None, gaussian)
    solve(drift, torch.ones(1, 2), plan)
    nodes = plan.sigmas().tolist()[:-1]
    levels = [*nodes[:2], nodes[-1]]  # Heun's first step, and the last Euler step
    for high, low in itertools.pairwise(nodes[1:]):
        middle = (high + low) / 2
        levels += [high, middle, middle, low]
    assert drift.nfe.tolist() == [len(levels)] == [19]
    assert drift.guide_nfe.tolist() == [sum(level <= 5 for level in levels)]


def test_a_threshold_that_is_never_reached_is_plain_heun():
    noise = torch.randn(2, 3)
    high = erk.sample(damped_rates, noise, steps=8, adaptive_tau=1e9)
    assert torch.equal(high, erk.sample(damped_rates, noise, steps=8))


def test_adaptive_steps_are_numbered():
    states = erk.trajectory(damped_rates, torch.ones(2, 3), steps=5, adaptive_tau=0.5)
    assert [state.index for state in states] == [0, 1, 2, 3, 4]


def test_the_langevin_corrector():
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    plan = Settings(steps=22, pc_snr=0.1)
    drift = plan.drift(gaussian)
    solve(drift, noise, plan)
    assert drift.nfe == 64  # 21 x 3 + 1, Table 11
    quiet = [
        erk.sample(gaussian, noise, steps=6, pc_snr=0.05, pc_stochastic=False) for _ in range(2)
    ]
    assert torch.equal(*quiet)
    draws = [torch.ones(2, 3)] * 5
    seeded = erk.sample(gaussian, noise, steps=6, pc_snr=0.05, randn_like=lambda x: draws.pop())
    assert not draws and not torch.equal(seeded, quiet[0])
    plain = erk.sample(gaussian, noise, steps=6)
    tiny = erk.sample(gaussian, noise, steps=6, pc_snr=1e-4, pc_stochastic=False)
    assert torch.allclose(tiny, plain, atol=1e-4)

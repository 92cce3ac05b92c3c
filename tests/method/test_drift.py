"""The drift: model guidance, its interval, ERK-Proj, and what a denoiser must return."""

import math
from itertools import pairwise

import pytest
import torch
from problems import gaussian, linear

import erk
from erk.calibration.solver_error import converged
from erk.method.drift import ApgDrift, CfgPlusPlusDrift, GuidedDrift, NonFiniteError
from erk.method.fields import PUBLISHED_SCHEDULES
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.schedule import make_schedule
from erk.method.settings import Settings


def test_model_guidance_extrapolates_and_respects_its_interval():
    x, sigma = torch.ones(1, 2), torch.tensor(0.5)
    main, guide = linear(0.2), linear(0.8)
    d_main, d_guide = main(x, sigma), guide(x, sigma)
    drift = GuidedDrift(main, None, guide, 3.0, interval=(0.4, 0.5))
    assert torch.allclose(drift(x, sigma).f, (x - (d_guide + 3 * (d_main - d_guide))) / sigma)
    for outside in (0.4, 0.51):  # open below, closed above
        sigma = torch.tensor(outside)
        assert torch.equal(drift(x, sigma).f, (x - main(x, sigma)) / sigma)


def test_one_network_as_main_and_guide_shares_its_call():
    sizes = []

    def model(x, sigma, labels):
        sizes.append(len(x))
        return 0.5 * x + labels.mean(1, keepdim=True)

    noise, labels = torch.randn(3, 2), torch.eye(3)
    chosen = dict(guidance=2.0, steps=4, guide_labels=torch.zeros(3, 3))
    shared = erk.sample(model, noise, labels, guide_model=model, **chosen)
    assert sizes == [6] * 7
    apart = erk.sample(model, noise, labels, guide_model=lambda *a: model(*a), **chosen)
    assert torch.allclose(shared, apart, atol=1e-5)


def test_a_guide_that_is_the_network_with_its_labels_is_refused():
    """J: D + (guidance - 1) (D - D) is no guidance, at twice the cost."""
    noise, labels = torch.randn(3, 2), torch.eye(3)
    for more in ({}, {"labels": labels}, {"labels": labels, "guide_labels": labels}):
        with pytest.raises(ValueError, match="guidance has no effect: give guide_labels or ano"):
            erk.sample(gaussian, noise, guide_model=gaussian, guidance=2.0, **more)


def test_erk_proj_keeps_the_stiff_part_of_guidance():
    """eta -> 1 at small w_stiff is plain guidance; at a large one only <g, v> v is left."""
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def guide(x, sigma, labels):
        return 0.8 * gaussian(x, sigma) + 0.1

    chosen = dict(guide_model=guide, guidance=2.0, steps=6)
    plain = erk.sample(gaussian, noise, **chosen)
    weak = erk.sample(gaussian, noise, erk_proj=True, w_stiff=1e-9, **chosen)
    strong = erk.sample(gaussian, noise, erk_proj=True, w_stiff=5.0, **chosen)
    first = [
        next(erk.trajectory(gaussian, noise, **chosen, **more)).x
        for more in ({}, {"erk_proj": True, "w_stiff": 5.0})
    ]
    assert torch.allclose(*first, rtol=1e-5)  # no pair yet: the first step has plain guidance
    assert torch.allclose(weak, plain, atol=1e-4)
    assert not torch.allclose(strong, plain, atol=1e-2)


@pytest.mark.parametrize("solver", ["dpm2", "deis"])
def test_erk_proj_of_solvers_that_never_return_to_a_sigma(solver):
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    chosen = dict(solver=solver, guide_model=linear(0.01), guidance=2.0, steps=6)
    plain = erk.sample(gaussian, noise, **chosen)
    assert not torch.equal(plain, erk.sample(gaussian, noise, erk_proj=True, w_stiff=1.0, **chosen))


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
    assert "for seed 7 at step" in str(caught.value.named("seed 7"))


@pytest.mark.parametrize("answer", [None, torch.zeros(1), torch.zeros(4, 3), 1j * torch.ones(4, 2)])
def test_a_denoiser_that_returns_another_shape_is_refused(answer):
    """J: of complex numbers only the real part was used."""
    with pytest.raises(ValueError, match="must return D"):
        erk.sample(lambda x, sigma, labels: answer, torch.randn(4, 2), steps=3)


# M5: adaptive projected guidance and CFG++

MAIN = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # of norms 5 and 0
GUIDE = torch.tensor([[2.0, 2.0], [-3.0, -4.0]])  # so g = (1, 2) and (3, 4)


def apg(weight=3.0, **parts):
    return ApgDrift(gaussian, None, linear(0.1), weight, **parts)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # <g, v> = (1 * 3 + 2 * 4) / 5 = 2.2, so along v = (1.32, 1.76), across (-0.32, 0.24)
        ({}, [[3 + 2 * -0.32, 4 + 2 * 0.24], [6.0, 8.0]]),
        ({"eta": 0.5}, [[3 + 2 * 0.34, 4 + 2 * 1.12], [6.0, 8.0]]),
        ({"eta": 1.0, "threshold": 1.0},
         [[3 + 2 / 5**0.5, 4 + 4 / 5**0.5], [1.2, 1.6]]),
        ({"eta": 1.0, "threshold": 3.0}, [[5.0, 8.0], [3.6, 4.8]]),  # limits the second only
    ],
    ids=str,
)  # fmt: skip
def test_apg_has_the_values_of_its_equations(parts, expected):
    answer = apg(**parts).combine(MAIN, GUIDE, torch.tensor(1.0))
    assert torch.allclose(answer, torch.tensor(expected), atol=1e-5)


def test_apg_sums_momentum_over_the_evaluations_and_restarts():
    drift, sigma = apg(eta=1.0, momentum=-0.5), torch.tensor(1.0)
    g = MAIN - GUIDE
    for factor in (1, 0.5, 0.75):  # g, g - g / 2, g - g / 4
        assert torch.allclose(drift.combine(MAIN, GUIDE, sigma), MAIN + 2 * factor * g)
    drift.restart()
    assert torch.allclose(drift.combine(MAIN, GUIDE, sigma), MAIN + 2 * g)


def test_apg_applies_momentum_then_the_threshold_then_the_projection():
    drift = apg(eta=0.5, threshold=1.0, momentum=-0.5)
    drift.combine(MAIN, GUIDE, torch.tensor(1.0))
    answer = drift.combine(MAIN, GUIDE, torch.tensor(1.0))
    # second g: (1, 2) - (1, 2) / 2, shortened to (1, 2) / sqrt(5), of which 2.2 / sqrt(5) is along
    # v = (0.6, 0.8), and half of that is taken away
    g = [(1 - 0.5 * 2.2 * 0.6) / 5**0.5, (2 - 0.5 * 2.2 * 0.8) / 5**0.5]
    assert torch.allclose(answer[0], torch.tensor([3 + 2 * g[0], 4 + 2 * g[1]]), atol=1e-5)


def test_the_threshold_of_apg_bounds_the_guidance_of_each_sample():
    main, guide = torch.randn(2, 64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    main = main.double()
    for eta in (0.0, 0.5, 1.0):
        answer = apg(eta=eta, threshold=0.7).combine(main, guide.double(), torch.tensor(1.0))
        assert (norm(answer - main) <= 2 * 0.7 * (1 + 1e-12)).all()


def weaker(x, sigma, labels=None):
    return 0.8 * gaussian(x, sigma) + 0.1


GUIDED = dict(guide_model=weaker, steps=5)
NOISE = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("solver", PUBLISHED_SCHEDULES)
def test_apg_with_eta_1_is_cfg_bit_for_bit(solver, weight):
    chosen = dict(**GUIDED, solver=solver, guidance=weight)
    plain = erk.sample(gaussian, NOISE, **chosen)
    assert torch.equal(
        plain, erk.sample(gaussian, NOISE, **chosen, guidance_kind="apg", apg_eta=1.0)
    )
    assert not torch.equal(plain, erk.sample(gaussian, NOISE, **chosen, guidance_kind="apg"))


def test_runs_of_one_drift_are_equal():
    """A run begins with no memory: of APG's momentum, and of ERK-Proj's pair."""
    for chosen in (
        {"solver": "deis", "guidance_kind": "apg", "apg_momentum": -0.5},
        {"w_stiff": 1.0, "erk_proj": True},
    ):
        plan = Settings(steps=5, guidance=2.0, **chosen)
        drift = plan.drift(gaussian, None, weaker)
        assert torch.equal(solve(drift, NOISE, plan), solve(drift, NOISE, plan))


def test_momentum_of_apg_changes_samples_and_not_the_first_step():
    chosen = dict(**GUIDED, solver="euler", guidance=2.0, guidance_kind="apg")
    runs = [
        [state.x for state in erk.trajectory(gaussian, NOISE, **chosen, apg_momentum=beta)]
        for beta in (0.0, -0.5)
    ]
    assert torch.equal(runs[0][0], runs[1][0]) and not torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("schedule", ["edm", "polynomial"])
def test_euler_with_cfg_plus_plus_is_the_published_step(schedule):
    chosen = dict(**GUIDED, solver="euler", schedule=schedule, dtype=torch.float64)
    sigmas = erk.Settings(steps=5, schedule=schedule, dtype=torch.float64).sigmas()
    x = NOISE.double() * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        seen, level = x.float(), sigma.float()
        main, guide = gaussian(seen, level).double(), weaker(seen, level).double()
        x = guide + 0.6 * (main - guide) + sigma_next * (x - guide) / sigma
    answer = erk.sample(gaussian, NOISE, **chosen, guidance=0.6, guidance_kind="cfg++")
    assert torch.allclose(answer, x, rtol=1e-6, atol=1e-7)


def test_cfg_plus_plus_weights_an_interval_by_its_length():
    drift = CfgPlusPlusDrift(
        gaussian, None, linear(0.1), 0.5, sigmas=torch.tensor([8.0, 4.0, 1.0, 0.0])
    )
    main, guide = torch.ones(1, 1), torch.zeros(1, 1)
    for sigma, weight in {8.0: 1.0, 5.0: 1.0, 4.0: 2 / 3, 2.0: 2 / 3, 1.0: 0.5, 0.5: 0.5}.items():
        assert drift.combine(main, guide, torch.tensor(sigma)).item() == pytest.approx(weight)


@pytest.mark.parametrize("kind", ["apg", "cfg++"])
@pytest.mark.parametrize(
    "chosen",
    [{"solver": solver, "w_stiff": 0.5, "w_con": 0.0} for solver in PUBLISHED_SCHEDULES]
    + [{"solver": solver, "erk": "auto"} for solver in ("heun", "dpm2")],
    ids=str,
)
def test_corrections_act_on_every_rule_of_guidance(chosen, kind):
    more = dict(**GUIDED, guidance=0.5, guidance_kind=kind)
    plain, corrected = (erk.sample(gaussian, NOISE, **more, **one)
                        for one in ({"solver": chosen["solver"]}, chosen))  # fmt: skip
    assert corrected.isfinite().all() and not torch.equal(plain, corrected)


def test_guidance_that_depends_on_the_steps_has_no_converged_solution():
    for chosen in ({"guidance_kind": "cfg++"},
                   {"guidance_kind": "apg", "apg_momentum": -0.5, "solver": "euler"}):  # fmt: skip
        plan = Settings(steps=5, guidance=0.5, **chosen)
        with pytest.raises(ValueError, match="there is no converged solution"):
            converged(plan, gaussian, NOISE, guide_model=weaker)
    plan = Settings(steps=200, guidance=2.0, guidance_kind="apg", dtype=torch.float64)
    exact = converged(plan, gaussian, NOISE, None, weaker, 400)
    fine = erk.sample(gaussian, NOISE, guide_model=weaker, steps=200, guidance=2.0,
                      guidance_kind="apg", dtype=torch.float64)  # fmt: skip
    assert torch.allclose(fine, exact, atol=1e-2)

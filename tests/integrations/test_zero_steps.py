"""A step of length 0 is never corrected and never an error where the parent has none (F2, G2)."""

import itertools
import random

import pytest
import torch
from scheduler_loop import HEUN, MULTI, PARENTS, SINGLE

SPACING = [{}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))]
SHARED = [
    SPACING,
    [{"beta_schedule": name} for name in ("linear", "scaled_linear", "squaredcos_cap_v2")],
    [{"prediction_type": name} for name in ("epsilon", "sample", "v_prediction")],
]
ENDS = [
    {"final_sigmas_type": "zero"},
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"},
]
ORDERS = [{"solver_order": order} for order in (1, 2, 3)]
GRIDS = {
    HEUN: [*SHARED, [{"timestep_spacing": name} for name in ("linspace", "leading", "trailing")]],
    SINGLE: [*SHARED, ENDS, ORDERS[:2]],
    MULTI: [
        [*SPACING, {"use_lu_lambdas": True}], *SHARED[1:], ENDS, ORDERS,
        [{"rescale_betas_zero_snr": on} for on in (False, True)],
        [{"timestep_spacing": name} for name in ("linspace", "leading", "trailing")],
    ],
}  # fmt: skip
STEPS = (2, 3, 5, 10, 20, 40)


def outcome(kind, config, **run):
    """The last sample of a run, or the type of the error."""
    try:
        scheduler = kind(**config)
        scheduler.set_timesteps(**run)
        x = torch.linspace(-1, 1, 8).reshape(2, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * scheduler.scale_model_input(x, t), t, x).prev_sample
    except Exception as error:  # whatever the parent raises
        return type(error)
    return x


def check(kind, config, run):
    ours = outcome(kind, config | {"w_stiff": 0.5}, **run)
    theirs = outcome(PARENTS[kind], config, **run)
    if isinstance(theirs, type):
        assert ours is theirs, (config, run)
    elif theirs.isfinite().all():
        assert isinstance(ours, torch.Tensor) and ours.isfinite().all(), (config, run, ours)


@pytest.mark.parametrize("kind", PARENTS)
def test_no_error_where_the_parent_has_none(kind):
    """60 of all combinations of each scheduler, drawn with a seed."""
    grid = list(itertools.product(*GRIDS[kind], STEPS))
    for *parts, steps in random.Random(0).sample(grid, 60):
        config = {key: value for part in parts for key, value in part.items()}
        check(kind, config, {"num_inference_steps": steps})


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_the_reported_case(spacing, steps):
    """F2: sigma_min at the end repeats the last level of these spacings."""
    config = {f"use_{spacing}_sigmas": True, "final_sigmas_type": "sigma_min"}
    scheduler = MULTI(**config, w_stiff=0.5)
    scheduler.set_timesteps(steps)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]
    check(MULTI, config, {"num_inference_steps": steps})


@pytest.mark.parametrize("kind", PARENTS)
def test_timesteps_with_a_repeat(kind):
    check(kind, {}, {"timesteps": [999, 700, 700, 400, 100, 100, 20]})

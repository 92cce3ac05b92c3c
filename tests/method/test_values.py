"""Values of settings: numbers and arrays of NumPy become Python's, all else is refused at once."""

import json
import math

import numpy as np
import pytest
import torch

import erk
from erk.method.fields import fields
from erk.method.values import FORMS

REFUSED = {
    "solver must be euler, heun, .* or a function \\(drift, .*, not": [["heun"], 3, None],
    "schedule must be a name or a list of noise levels, not": [5.0, {"edm": 1}],
    "a noise level of schedule must be a finite number, not": [[[3.0, 1.0]], ["3", "1"], [3, None]],
    "noise levels above 0 are 1e-12 to 1e\\+12, not": [[1e160, 1.0], [1.0, 1e-160]],
    "steps must be an integer from 1 to 1000000, not": [
        6.5, "6", True, None, 0, 10**9, 10**400, math.inf, math.nan,
    ],
    "sigma_min must be a finite number from 1e-12 to 1e\\+12, not": [-0.1, 0, "1", math.nan, None],
    "sigma_max must be a finite number from 1e-12 to 1e\\+12, not": [1e160, "80", math.inf],
    "rho must be a finite number above 0, not": [0.0, -1, "7", math.inf, [7]],
    "guidance must be a finite number from -1e\\+06 to 1e\\+06, not": [
        math.nan, -math.inf, "2", [], 1j, True, 10**400, 1e308,
    ],
    "guidance_interval must be \\(lo, hi\\) in sigma with 0 <= lo < hi, not": [
        (0.1,), ("a", "b", "c"), (2.0, 1.0), (-1.0, 1.0), 0.1, "0.1,1",
    ],
    "a bound of guidance_interval must be a number, not": [("0", "1"), (0.0, math.nan)],
    "guidance_kind must be cfg or apg or cfg\\+\\+, not": ["apg+", None, 1],
    "apg_eta must be a finite number from -1e\\+06 to 1e\\+06, not": [math.inf, "1"],
    "apg_threshold must be a finite number of at least 0, not": [-1, math.nan],
    "apg_momentum must be a finite number from -1 to 1, not": [-2, "-0.5"],
    "w_stiff must be a finite number of at least 0, not": ["1", -1.0, math.nan, math.inf, [1.0]],
    "w_con must be a finite number of at least 0, not": [-1.0, None],
    "erk_scale must be quadratic or abs or alpha, not": ["cubic", None, 2],
    "erk_proj must be True or False, not": [1, "yes", None],
    "erk must be 'auto', a Correction or None, not": [False, True, 0, 1.0, {}, {"for": {}}],
    "twin must be a function \\(step, .*\\) -> \\(twin, h\\), not": [3, "pair"],
    "S_churn must be a finite number of at least 0, not": [-1, math.nan, "8"],
    "S_min must be a finite number of at least 0, not": [-1, math.nan],
    "S_max must be a number of at least 0, not": [math.nan, "inf"],
    "S_noise must be a finite number of at least 0, not": [-1, math.inf],
    "churn_rule must be edm or edm2, not": ["vp", 2],
    "afs must be True or False, not": [1],
    "denoise_to_zero must be True or False, not": [1.0],
    "adaptive_tau must be a finite number above 0, not": [0, -1, math.nan, "1"],
    "pc_snr must be a finite number of at least 0, not": [-0.1, math.nan],
    "pc_stochastic must be True or False, not": [0],
    "solver_options must be a dictionary such as {'order': 3}, not": [None, ["order=3"], "order=3"],
    "dtype must be torch.float64 or .*, not": [torch.int64, "float32", None, torch.complex64],
}  # fmt: skip
CASES = [(message, value) for message, values in REFUSED.items() for value in values]


@pytest.mark.parametrize(("message", "value"), CASES, ids=lambda part: str(part)[:40])
def test_other_types_and_numbers_out_of_range_are_refused_with_the_value(message, value):
    """Findings 3 (erk=False), 19 (steps=inf, sigma_max=1e160) and 22."""
    name = "schedule" if "noise level" in message else message.split()[0]
    name = "guidance_interval" if "guidance_interval" in message else name
    with pytest.raises(ValueError, match=message) as caught:
        erk.Settings(**{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_every_setting_has_a_refused_value():
    messages = " ".join(REFUSED)
    assert all(one.name in messages and one.form in FORMS for one in fields())


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.longdouble, torch.tensor, np.array])
def test_numbers_of_numpy_and_torch_become_numbers(kind):
    """Finding 4: a card of steps=4 was refused with 'steps 4 there, 4 here'."""
    settings = erk.Settings(w_stiff=kind(0.5), rho=kind(7.0), steps=kind(4), sigma_max=kind(40))
    values = settings.w_stiff, settings.rho, settings.steps, settings.sigma_max
    assert [*map(type, values)] == [float, float, int, float]
    plain = erk.Settings(w_stiff=0.5, rho=7, steps=4, sigma_max=40.0)
    assert settings == plain and settings.identity() == plain.identity()
    assert json.dumps(settings.recipe()) == json.dumps(plain.recipe())


def test_integers_and_flags_of_numpy_become_pythons():
    settings = erk.Settings(
        solver="deis", steps=np.int64(4), afs=np.bool_(True), solver_options={"order": np.int8(3)}
    )
    assert (settings.steps, settings.afs, settings.solver_options) == (4, True, {"order": 3})
    assert json.dumps(settings.identity())


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list, tuple])
def test_levels_become_a_tuple_of_numbers(kind):
    levels = [80.0, 5.0, 0.5, 0.0625]
    settings = erk.Settings(schedule=kind(levels))
    assert settings.schedule == tuple(levels) and settings.identity()["schedule"] == levels
    assert settings == erk.Settings(schedule=levels) and hash(settings.levels)
    interval = erk.Settings(guidance=2.0, guidance_interval=kind([0.25, 2.0])).guidance_interval
    assert interval == (0.25, 2.0)


def test_a_long_array_changed_in_the_middle_has_another_identity():
    """Finding 4: str() abbreviates arrays of more than 1000 numbers."""
    levels = np.linspace(80, 0.01, 2000)
    changed = levels.copy()
    changed[1000] += 1e-6
    first, second = (erk.Settings(schedule=array) for array in (levels, changed))
    assert first.identity() != second.identity() and first != second
    assert first.identity() == erk.Settings(schedule=levels.tolist()).identity()


@pytest.mark.parametrize(
    "settings",
    [dict(rho=1e-3), dict(rho=1e17, steps=8), dict(rho=1e-320), dict(schedule="logsnr",
     sigma_min=math.nextafter(80, 0)), dict(schedule="time_uniform", rho=1e17, steps=400)],
    ids=str,
)  # fmt: skip
def test_a_schedule_that_rounds_to_fewer_steps_is_refused(settings):
    """Finding 19: a traceback, or 4 of 8 intervals."""
    with pytest.raises(ValueError, match="has no .* different steps"):
        erk.Settings(**settings)


@pytest.mark.parametrize("name", ["edm", "polynomial", "logsnr", "time_uniform"])
def test_the_ends_of_the_range_are_a_schedule(name):
    levels = erk.Settings(schedule=name, steps=200, sigma_min=1e-12, sigma_max=1e12).sigmas()
    assert len(levels) == 201 and (levels.diff() < 0).all() and levels.isfinite().all()


def test_churned_levels_need_two_ends_in_order():
    with pytest.raises(ValueError, match="S_min 3 exceeds S_max 2"):
        erk.Settings(S_churn=1.0, S_min=3, S_max=2)

"""The published samplers within a budget, with the most steps that fit."""

import pytest

from erk.calibration.candidates import published
from erk.calibration.problem import count_nfe
from erk.method.solvers import published_schedule


@pytest.mark.parametrize("nfe", [3, 8, 11])
def test_every_sampler_fits_and_another_step_would_not(nfe):
    candidates = published(nfe, {})
    assert all(count_nfe(one)[0] <= nfe for one in candidates)
    names = {(one.solver, one.levels) for one in candidates}
    assert ("heun", "edm") in names and ("deis", "time_uniform") in names
    assert {one.solver for one in candidates} >= {"heun", "deis", "dpmpp", "unipc", "ipndm"}
    heun = next(one for one in candidates if (one.solver, one.levels, one.afs) ==
                ("heun", "edm", False))  # fmt: skip
    assert heun.steps == (nfe + 1) // 2
    multistep = [one for one in candidates if one.solver == "deis" and one.afs]
    assert multistep and all(one.steps == nfe + 1 for one in multistep)


def test_what_is_given_is_kept():
    fixed = {"solver": "dpm2", "schedule": "logsnr", "afs": False, "sigma_max": 40.0}
    (one,) = published(8, fixed)
    assert (one.solver, one.levels, one.steps, one.sigma_max) == ("dpm2", "logsnr", 4, 40.0)
    (one,) = published(8, fixed | {"steps": 3, "solver_options": {"r": 0.6}})
    assert one.steps == 3 and one.solver_options == {"r": 0.6}
    levels = {one.levels for one in published(8, {"solver": "deis"})}
    assert levels == {published_schedule("deis"), "polynomial", "logsnr"}


@pytest.mark.parametrize(
    ("nfe", "fixed", "message"),
    [
        (2, {"solver": "heun", "schedule": "edm", "afs": False}, "heun at least 3"),
        (1, {"solver": "deis", "afs": False}, "--nfe 1 is too few evaluations: deis at least 2"),
        (7, {"solver": "dpm2", "steps": 4, "afs": False}, "dpm2 at least 8"),
    ],
)
def test_too_few_evaluations_are_named(nfe, fixed, message):
    with pytest.raises(ValueError, match=message):
        published(nfe, fixed)

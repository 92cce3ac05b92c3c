"""Noise schedules: those of the originals, exact at their ends."""

import numpy as np
import pytest
import torch
from golden_data import ref

import erk
from erk.method.fields import PUBLISHED_SCHEDULES, SCHEDULE_NAMES
from erk.method.schedule import SCHEDULES, make_schedule
from erk.method.solvers import SOLVERS, published_schedule


@pytest.mark.parametrize(("name", "rho"), [("polynomial", 7), ("polynomial", 5), ("logsnr", None)])
def test_schedules_equal_the_originals(name, rho):
    for nodes in (2, 4, 5, 6, 7, 9, 11):
        theirs = ref("schedules")[f"{name}_rho{rho or 7}_n{nodes}_0.002_80.0"].astype(np.float64)
        ours = make_schedule(name, nodes - 1, rho=rho).numpy()
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # theirs are float32


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"discrete"}))
def test_ends_are_exact_and_levels_decrease(name):
    sigmas = make_schedule(name, 32)
    positive = sigmas[sigmas > 0]
    assert len(sigmas) == 33 and sigmas.dtype == torch.float64
    assert (positive[0], positive[-1]) == (80.0, 0.002) and (sigmas.diff() < 0).all()
    assert (sigmas[-1] == 0) == (name == "edm")


def test_every_solver_has_the_schedule_that_it_is_published_with():
    assert PUBLISHED_SCHEDULES == {
        "euler": "polynomial", "heun": "edm", "dpm2": "polynomial", "ipndm": "polynomial",
        "ipndm_v": "polynomial", "deis": "time_uniform", "dpmpp": "logsnr", "unipc": "logsnr",
    }  # fmt: skip
    assert [*PUBLISHED_SCHEDULES] == [*SOLVERS] and [*SCHEDULES] == [*SCHEDULE_NAMES]
    assert published_schedule(lambda *arguments: None) == "edm"


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_schedule_means_the_published_one(solver):
    default = erk.Settings(solver=solver, steps=6).sigmas()
    named = erk.Settings(solver=solver, steps=6, schedule=published_schedule(solver)).sigmas()
    assert torch.equal(default, named)

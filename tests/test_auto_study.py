"""`erk="auto"` is never worse than the plain solver: error, FD and sliced W1, on a small grid."""

import pytest

from erk.solvers import SOLVERS
from scripts.auto_study import DATA, STEPS, compare, plan_of, worse
from scripts.study_data import load


def check(name, solver, steps, seeds):
    row = compare(load(name), plan_of(load(name), solver, steps), seeds)
    assert not worse(row), row
    return row


@pytest.mark.parametrize("name", ["digits", "digits-cfg", "mixture", "toy"])
def test_heun_gains_on_all_data(name):
    row = check(name, "heun", 6, 32)
    assert row["ratio"][0] + 2 * row["ratio"][1] < 1


@pytest.mark.parametrize("solver", sorted({*SOLVERS} - {"heun"}))
def test_no_solver_loses_on_the_exact_toy(solver):
    check("toy", solver, 16, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_whole_grid(name, solver):
    for steps in STEPS:
        check(name, solver, steps, 96)


def test_what_counts_as_worse():
    good = {"ratio": (1.01, 0.01), "change": (0.1, 0.06)}
    assert not worse(good) and not worse({})
    assert worse(good | {"ratio": (1.03, 0.01)}) and worse(good | {"change": (0.13, 0.06)})

"""`erk="auto"` is never worse than the plain solver: error, FD and sliced W1, on a small grid."""

import json

import pytest
from click.testing import CliRunner

from erk.method.solvers import SOLVERS
from scripts.studies.auto_study import DATA, STEPS, compare, main, plan_of, worse
from scripts.studies.study_data import load


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


def test_a_row_of_other_code_is_made_again(tmp_path):
    """The study as called: rows are kept; one with another key is renewed in its place."""
    job = ["--seeds", "32", "--data", "toy", "--steps", "4", "--out", str(tmp_path / "a")]
    job += ["--solver", "heun", "--solver", "deis"]

    def run():
        done = CliRunner().invoke(main, job)
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "a.json").read_text())

    first = run()
    assert [row["solver"] for row in first["rows"]] == ["heun", "deis"]
    assert all(len(row["key"]) == 24 and row["made_by"]["commit"] for row in first["rows"])
    stale = [row | {"key": "x"} for row in first["rows"][:1]] + first["rows"][1:]
    stale[1]["kept"] = True
    (tmp_path / "a.json").write_text(json.dumps({"rows": stale}))
    heun, deis = run()["rows"]
    assert heun["ratio"] == first["rows"][0]["ratio"] and heun["key"] == first["rows"][0]["key"]
    assert deis["kept"]

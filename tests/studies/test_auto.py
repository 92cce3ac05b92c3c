"""`erk="auto"` is never worse than the plain solver: error, FD and sliced W1, on a small grid."""

import json

import pytest
from click.testing import CliRunner

from erk.method.solvers import SOLVERS
from scripts.studies.auto import DATA, STEPS, compare, main, settings_of, text, worse
from scripts.studies.data import load


def check(name, solver, steps, seeds):
    row = compare(load(name), settings_of(load(name), solver, steps), seeds)
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
def test_no_cell_of_the_grid_loses(name, solver):
    for steps in STEPS:
        check(name, solver, steps, 96)


def test_worse_means_beyond_two_standard_errors():
    good = {"ratio": (1.01, 0.01), "change": (0.1, 0.06)}
    assert not worse(good) and not worse({})
    assert worse(good | {"ratio": (1.03, 0.01)}) and worse(good | {"change": (0.13, 0.06)})


def test_the_text_names_cells_with_a_larger_mean_error():  # S11, N13
    kept = {"data": "mixture", "solver": "heun", "steps": 64, "ratio": [3.2, 2.6]}
    shown = text([kept | {"median ratio": 0.25, "change": [0.0, 0.1]}])
    assert "Mean error larger than the plain solver's: mixture heun 64" in shown
    assert "Worse by more than two standard errors: none" in shown
    assert "| mixture | heun |" in shown and "0.25" in shown and "3.2 ± 2.6" in shown


def test_rows_are_kept_and_replace_those_of_earlier_versions(tmp_path, monkeypatch):
    job = ["--seeds", "32", "--data", "toy", "--steps", "4", "--solver", "heun",
           "--solver", "deis", "--out", str(tmp_path / "a")]  # fmt: skip

    def run():
        done = CliRunner().invoke(main, job)
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "a.json").read_text())["rows"]

    first = run()
    assert [row["solver"] for row in first] == ["heun", "deis"]
    assert all(row["made_by"]["commit"] for row in first)
    monkeypatch.setattr("scripts.studies.auto.compare", lambda *_: pytest.fail("computed again"))
    stale = [first[0] | {"ratio": None}, first[1]]
    (tmp_path / "a.json").write_text(json.dumps({"rows": stale}))
    assert run() == first
    assert "| toy | heun |" in (tmp_path / "a.md").read_text()

"""The comparison of solvers at a tiny size, as a user would call it."""

import csv
import json

import pytest
from click.testing import CliRunner

from scripts.paper.config import ROOT
from scripts.studies import comparison, comparison_cells, comparison_page
from scripts.studies.comparison_plan import BUDGETS, METHODS, MODES, cells_of

TINY = ("--num", "20", "--solver", "dpm2", "--budget", "6")


def call(*arguments):
    return CliRunner().invoke(comparison.main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All modes of one solver on digits and the toy."""
    folder = tmp_path_factory.mktemp("comparison")
    done = call(*TINY, "--results", folder)
    assert done.exit_code == 0, done.output
    return folder


def rows_of(folder):
    return json.loads((folder / "comparison.json").read_text("utf-8"))["rows"]


def test_every_mode_is_compared_with_its_plain_solver(folder):
    rows = rows_of(folder)
    expected = [(data, mode) for data in ("digits", "toy") for mode in MODES]
    assert [(row["data"], row["mode"]) for row in rows] == expected
    for row in rows:
        assert row["nfe"] == 6 and row["steps"] == 3 and row["samples"] == 20
        assert row["error"] > 0 and row["error_se"] > 0 and row["quality"] > 0
        assert row["seeds"] == "320000-320019" and row["commit"] and row["device"] == "cpu"
        if row["mode"] == "plain":
            assert row["ratio"] == 1 and row["quality_minus_plain"] == 0
    by_mode = {(r["data"], r["mode"]): r for r in rows}
    assert by_mode["toy", "auto"]["ratio"] < 0.5
    assert by_mode["digits", "calibrated"]["ratio"] < 0.8
    assert by_mode["digits", "fixed"]["w_stiff"] > 0 and by_mode["digits", "fixed"]["ratio"] < 1


def test_page_and_figures_are_written(folder):
    with open(folder / "comparison.csv") as file:
        assert len(list(csv.DictReader(file))) == 8
    for kind in ("error", "quality"):
        for data in ("digits", "toy"):
            png = (folder / f"comparison-{data}-{kind}.png").read_bytes()
            assert png.startswith(b"\x89PNG")
    text = (folder / "comparison.md").read_text()
    for expected in ("DPM-Solver-2", "calibrated", "Which to use when", "NFE 6"):
        assert expected in text


def test_finished_cells_are_kept_and_missing_ones_come_out_alike(folder):
    before = rows_of(folder)
    kept = sorted((folder / "rows").iterdir())
    assert len(kept) == 8
    assert call(*TINY, "--results", folder).output.startswith("0 of 8 cells")
    lost = [path for path in kept if json.loads(path.read_text())["mode"] == "fixed"]
    for path in lost:
        path.unlink()
    done = call(*TINY, "--results", folder)
    assert done.output.startswith("2 of 8 cells") and sorted((folder / "rows").iterdir()) == kept
    assert [{k: v for k, v in r.items() if k != "command"} for r in rows_of(folder)] == [
        {k: v for k, v in r.items() if k != "command"} for r in before
    ]


def test_a_budget_is_used_up_and_never_exceeded():
    for cell in cells_of(("digits",), BUDGETS, (), None):
        assert cell.budget - 2 < cell.nfe <= cell.budget
    modes = {m.name: {c.mode for c in cells_of(("toy",), (6,), (), None) if c.method == m}
             for m in METHODS}  # fmt: skip
    assert all(modes[m.name] == ({"plain"} if m.plain_only else set(MODES)) for m in METHODS)


def test_a_mode_that_does_nothing_is_the_plain_solver(tmp_path):
    """auto has no coefficients for deis."""
    cells = [c for c in cells_of(("toy",), (6,), ("deis",), 20) if c.mode in ("plain", "auto")]
    comparison_cells.compute(cells, tmp_path)
    plain, auto = comparison_page.rows_of(cells, tmp_path)
    assert not auto["acts"] and (auto["error"], auto["ratio"]) == (plain["error"], 1)


def test_dry_run_and_bad_input(tmp_path):
    done = call(*TINY, "--results", tmp_path, "--dry-run")
    assert done.exit_code == 0 and "8 of 8 cells are to be computed: about" in done.output
    done = call("--solver", "hein", "--results", tmp_path)
    assert done.exit_code == 2 and "--solver hein is none of heun, dpm2" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_document_shows_the_committed_tables():
    """docs/beyond.md repeats two tables of results/comparison.md for each kind of data."""
    page = (ROOT / "results" / "comparison.md").read_text("utf-8")
    document = (ROOT / "docs" / "beyond.md").read_text("utf-8")
    for data in ("digits", "toy"):
        for caption in (f"{data}. The same distance over", f"{data}. Which to use when."):
            lines = page[page.index(caption) :].split("\n\n")[1].splitlines()
            assert len(lines) > 6 and [line for line in lines if line not in document] == []

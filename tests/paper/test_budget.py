"""The order of the rows, and the budget, on a clock of the test."""

import pytest

from scripts.paper import budget
from scripts.paper.config import Experiment, Request, load_config
from scripts.paper.rows import planned_rows
from scripts.paper.scales import at_scale


def rows_of(name, scale="digits"):
    request = Request(scale=scale)
    return planned_rows(at_scale(load_config(name), request), request)


def test_the_most_valuable_rows_come_first_and_cheap_before_dear():
    pages = (("figure6", "digits"), ("table3", "digits"), ("table2", "digits"), ("table2", "mnist"))
    rows = [row for page in pages for row in rows_of(*page)]
    ordered = budget.Budget(None, 1).ordered(rows)
    assert sorted(map(str, ordered)) == sorted(map(str, rows))
    ranks = [0 if one.row.published else 1 for one in ordered[:36]]
    assert {one.table for one in ordered[:36]} == {"table2"} and ranks == [0] * 20 + [1] * 16
    assert [one.row.name for one in ordered[:2]] == ["8 steps", "8 steps, w_stiff 0.5"]
    assert [one.page for one in ordered[:3]] == ["table2"] * 3
    assert [one.table for one in ordered[36:]] == ["table3"] * 12 + ["figure6"] * 17


def test_no_row_is_started_that_would_not_end(monkeypatch):
    """Rows of 2000 images at 63 and 15 evaluations of 0.11 ms: 13.9 s and 3.3 s, and 4 s more."""
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    long, *_, short = (one for one in rows_of("table2") if one.row.name in ("32 steps", "8 steps"))
    one = budget.Budget(33 / 3600, 1)
    assert one.estimate(long) == pytest.approx(2000 * 63 * 0.11e-3 + 4)
    assert one.estimate(short) == pytest.approx(2000 * 15 * 0.11e-3 + 4)
    assert one.allows(long) and one.allows(short)
    now[0] = 20.0
    assert not one.allows(long) and one.allows(short)
    one.took(short, 4 + 3 * 2000 * 15 * 0.11e-3)  # three times as slow as expected
    assert one.estimate(short) == pytest.approx(3 * 2000 * 15 * 0.11e-3 + 4)
    assert not one.allows(short)
    assert "2 rows are left" in one.report()
    assert "  table2: 32 steps; 8 steps" in one.report().splitlines()
    assert budget.Budget(None, 1).allows(long) and budget.Budget(None, 1).report() == ""


def test_costs_count_equal_rows_once():
    """On digits Table 10 has two rows of Table 2 and its auto: 5 new ones."""
    experiments = [
        Experiment(at_scale(load_config(name), Request(scale=scale)), Request(scale=scale))
        for name, scale in (("table2", "digits"), ("table10", "digits"), ("table2", "mnist"))
    ]
    lines = [line.split() for line in budget.costs(experiments).splitlines()]
    assert ["table2", "18", "36000"] in [line[:3] for line in lines]
    assert ["table10", "5", "10000"] in [line[:3] for line in lines]
    assert "In all: digits 6 min; mnist 37 min." in budget.costs(experiments)


def test_a_budget_of_nothing_leaves_all_rows(run, tmp_path):
    output = run("table2", "table8", "figure6", "--num", "8", "--budget", "0")
    assert "38 rows are left" in output and "table8: Autoguidance" in output
    text = (tmp_path / "results" / "table2.md").read_text("utf-8")
    assert "NOT MEASURED YET: 18 of 18 rows" in text
    assert not (tmp_path / "results" / "figure6.png").exists()

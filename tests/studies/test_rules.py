"""The study of ERK-Guid with rules of model guidance."""

import pytest

from scripts.paper.config import ROOT
from scripts.studies.rules import COLUMNS, change, text


def row(rule, name, fd, replicates):
    values = {column: [0.5, 0.01] for column in COLUMNS} | {"fd": [fd, 1.0]}
    return {"rule": rule, "ERK-Guid": name, "seeds": 100, **values,
            "replicates": {"fd": replicates}}  # fmt: skip


def test_changes_are_those_of_the_same_rule_and_of_paired_seeds():
    rows = [
        row("CFG", "off", 20.0, [20.0, 22.0]), row("CFG", "auto", 10.0, [10.0, 11.0]),
        row("APG", "off", 40.0, [40.0, 41.0]), row("APG", "auto", 50.0, [50.0, 50.0]),
    ]  # fmt: skip
    assert change(rows[1], rows[0]) == (-50, pytest.approx(2.5))  # replicates -10 and -11
    assert change(rows[3], rows[2]) == (25, pytest.approx(1.25))
    shown = text(rows)
    assert "of 2 changes" in shown and "| APG | auto | 100 | 50.0 ± 1.0 |" in shown


def test_the_page_on_guidance_shows_the_results():
    """M5: docs/howto/guidance.md repeats the table of results/rules.md."""
    table = [line for line in (ROOT / "results" / "rules.md").read_text("utf-8").splitlines()
             if line.startswith("|")]  # fmt: skip
    page = (ROOT / "docs" / "howto" / "guidance.md").read_text("utf-8")
    assert len(table) == 2 + 9 and [line for line in table if line not in page] == []

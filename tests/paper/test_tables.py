"""What the page of a sampled table says: values, published values, differences and verdicts."""

import pytest

from metrics.protocols import find_protocol
from scripts.paper.config import Request, load_config
from scripts.paper.page import to_md
from scripts.paper.scales import at_scale
from scripts.paper.tables import Change, heading, page_of, verdict

MADE_BY = {"command": "reproduce.py table2 --num 4", "commit": "abc", "device": "cpu",
           "versions": {"torch": "2.8", "python": "3.11"}}  # fmt: skip


def test_a_verdict_counts_and_names():
    changes = [Change("a", -1.0, True), Change("b", 2.0, True), Change("c", 0.1, False)]
    assert verdict("fd", changes, ("better", "worse")) == (
        "fd, of 3 paired differences: better in 1 (a), worse in 1 (b), not beyond noise in 1."
    )
    assert verdict("is", changes[:2], ("worse", "better"), first="better") == (
        "is, of 2 paired differences: better in 1 (b), worse in 1 (a)."
    )
    assert verdict("fd", [], ("better", "worse")) == ""


@pytest.mark.parametrize(
    ("name", "start"),
    [("table2", "Table 2 on MNIST: "), ("fig8_9", "Figure 8, 9 on MNIST: "),
     ("figure3", "Figure 3 on MNIST: "), ("other", "other on MNIST: ")],
)  # fmt: skip
def test_heading(name, start):
    config = load_config("table2").model_copy(update={"name": name})
    assert heading(config, Request(scale="mnist"), "digits").startswith(start)
    table5 = load_config("table5")
    assert heading(table5, Request()) == f"Table 5: {table5.title}"


def finished(n, scale, **values):
    """Numbers of a row as scripts.paper.rows keeps them."""
    protocol = {"paper": "erk-paper", "digits": "digits"}[scale]
    return {
        "settings": {"w_stiff": 0.0}, "seeds": f"0-{n - 1}", "batch": 4, "nfe": 63.0,
        "guide_nfe": 0.0, "protocol": protocol, "n": n, "reference": "ref", **values,
        **{f"{name}_se": 0.1 for name in values},
        "replicates": {name: [value - 0.01, value, value + 0.01] for name, value in values.items()},
        "notes": [], "made_by": MADE_BY, "spent": {"seconds": 2.0, "images": n, "processes": 1},
    }  # fmt: skip


def rows_with(rows):
    return [rows.get(i, {}) for i in range(10)]


def test_page_at_paper_scale_gives_differences_to_the_published():
    config, request = load_config("table2"), Request(scale="paper")
    values = {"fd_dinov2": 91.0, "fid": 2.6, "precision": 0.67, "recall": 0.63, "is": 240.0}
    better = values | {"fid": 2.5}
    rows = {0: finished(50000, "paper", **values), 1: finished(50000, "paper", **better)}
    page = page_of(config, request, rows_with(rows))
    assert page.name == "table2-paper" and page.title.startswith("Table 2, paper scale (ref): ")
    minus = page.rows[0]["minus_published"]
    assert minus["fd_dinov2"] == pytest.approx(0.9) and minus["fid"] == pytest.approx(0.02)
    assert minus["precision"] == pytest.approx(0.67 - 0.672)  # with the swapped column
    assert minus["recall"] == pytest.approx(0.63 - 0.631)
    paired = page.rows[1]["paired"]["fid"]
    assert paired["value"] == pytest.approx(-0.1) and paired["exceeds"]
    assert page.rows[1]["paired"]["is"]["value"] == 0 and page.rows[2]["measured"] is False
    text = to_md(page)
    assert "| 32 steps, w_stiff 0.5 | 63 | **91.00 ± 0.10** | **2.50 ± 0.10** |" in text
    assert find_protocol("erk-paper").note in text and "ours − fid" in text
    assert "fid, of 1 paired differences: better in 1 (32 steps, w_stiff 0.5)." in text
    assert "NOT MEASURED YET: 8 of 10 rows" in text and "--rows 2,3,4,5,6,7,8,9." in text
    few = page_of(config, request, rows_with({0: finished(1000, "paper", **values)}))
    assert few.rows[0]["minus_published"] == {}


def test_page_on_digits_never_compares_with_the_paper():
    config = at_scale(load_config("table2"), Request())
    values = {"fd": 2.0, "precision": 0.7, "recall": 0.9, "is": 9.0, "accuracy": 0.9}
    worse = values | {"fd": 2.5}
    row = finished(50000, "digits", **worse)
    row["spent"]["images"] = 10  # the others were in the cache
    rows = [finished(50000, "digits", **values), row, *[{}] * (len(config.rows) - 2)]
    page = page_of(config, Request(), rows)
    assert "Table 2 on digits" in page.title and page.name == "table2"
    assert all(not one.get("minus_published") for one in page.rows)
    text = to_md(page)
    assert "ours −" not in text and "These are not the paper's numbers" in text
    assert "so no differences are shown" in text and "| **82.8** | 2.74 |" in text
    assert "fd, of 1 paired differences: worse in 1 (32 steps, w_stiff 0.5)." in text
    assert "| 32 steps, w_stiff 0.5 | 32 steps | 25.0" in text and " | -1.3 | -0.4 |" in text
    assert page.rows[0]["seconds"] == 2.0 and page.rows[1]["seconds"] is None


def test_page_without_any_row():
    config = at_scale(load_config("table4"), Request())
    page = page_of(config, Request(), [{}] * 54)
    assert "NOT MEASURED YET: 54 of 54 rows" in to_md(page) and page.made_by == []
    assert len(page.tables) == 2

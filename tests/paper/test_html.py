"""The HTML of pages: ours beside the published values, marks, and sentences that hold."""

import pytest

from scripts.paper.config import ROOT, Said, config_names, load_config
from scripts.paper.html import config_of, details_of, holds, main_table, rounded, sentence
from scripts.paper.page import Page, read_page, table_of

PAGES = [read_page(path) for name in config_names()
         for path in sorted((ROOT / "results").glob(f"{name}*.json"))]  # fmt: skip


def change(value, exceeds):
    return {"value": value, "error": 0.1, "exceeds": exceeds}


PAGE = Page(
    name="table2", title="Table 2", kind="sampled", scale="digits",
    tables=[table_of("Measured here.", [{"row": "a"}]), table_of("Differences.", [{"row": "b"}])],
    rows=[
        {"name": "a", "measured": True, "nfe": 63.0, "guide_nfe": 63.0, "ours": {"fd": 47.04,
         "is": 9.0}, "se": {"fd": 0.82, "is": None}, "paired": {}, "published": {"fid": 2.5}},
        {"name": "b", "measured": True, "nfe": 11.0, "guide_nfe": 0.0, "ours": {"fd": 46.0,
         "is": 8.0}, "se": {"fd": 0.13, "is": 0.04}, "against": "a",
         "paired": {"fd": change(-1.04, True), "is": change(-1.0, True)},
         "published": {"fid": 2.58}},
        {"name": "c", "measured": False, "published": {}},
    ],
)  # fmt: skip
PAGE.tables[0].bold = [(1, "fd")]


def test_ours_and_published_values_are_side_by_side():
    table = main_table(PAGE)
    assert table.groups == [("", 2), ("measured here", 2), ("published", 1)]
    assert table.columns == ["row", "NFE", "FD", "IS", "FID"]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [["a", "63 + 63", "47.0", "9", "2.50"], ["b", "11", "46.00", "8.00", "2.58"],
                     ["c", "–", "–", "–", "–"]]  # fmt: skip
    fd, score = table.rows[1][2:4]
    assert (fd.error, fd.is_best, fd.verdict) == ("0.13", True, "better")
    assert fd.hint == "-1.04 ± 0.10 against a" and score.verdict == "worse"  # a lower IS is worse
    assert [one.caption for one in details_of(PAGE)] == ["Differences."]


@pytest.mark.parametrize(("value", "error", "expected"), [
    (47.04, 0.82, ("47.0", "0.8")), (0.01195, 0.00014, ("0.01195", "0.00014")),
    (1121.3, 12.0, ("1121", "12")), (0.7, 0.0996, ("0.70", "0.10")), (5.0, 0.0, ("5", "")),
    (None, None, ("–", "")),
])  # fmt: skip
def test_values_are_rounded_to_their_error(value, error, expected):
    assert rounded(value, error) == expected


def test_a_wrong_direction_is_named():
    said = Said(text="It.", holds={"b": {"fd": "worse", "is": "worse"}, "a": {"fd": "better"}})
    assert holds(said, PAGE.rows) == ["b: fd is better, not worse",
                                      "a: fd is not measured, not better"]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_hold(page):
    """What a config says of a page is what its numbers show; see its key `says`."""
    config = config_of(page)
    said = config and config.says.get(page.scale or "any")
    if not said:
        pytest.skip("no sentence for this network yet")
    assert holds(said, page.rows) == []
    assert sentence(page) == said.text


@pytest.mark.parametrize("change", ["a row left out", "another direction", "few images"])
def test_a_trial_has_no_sentence(change):
    """It stood above numbers of 40 images that showed something else."""
    page = next(page for page in PAGES if page.name == "table2")
    rows = [dict(row) for row in page.rows]
    if change == "a row left out":
        rows[0]["measured"] = False
    elif change == "few images":
        rows[0]["images"] = 40
    else:
        said = next(iter(config_of(page).says[page.scale].holds))
        next(row for row in rows if row["name"] == said)["paired"] = {}
    assert sentence(page) and not sentence(page.model_copy(update={"rows": rows}))


def test_a_figure_of_few_samples_has_no_sentence():
    page = next(page for page in PAGES if page.name == "figure3")
    made_by = [{"command": "-m scripts.paper.reproduce figure3 --num 40"}]
    assert sentence(page) and not sentence(page.model_copy(update={"made_by": made_by}))


def test_every_page_has_a_sentence():
    missing = [name for name in config_names() if not load_config(name).says]
    assert missing == []


def test_the_second_point_of_table_1_reproduces():
    rows = read_page(ROOT / "results" / "table1.json").rows
    ratios = [row["here / published"] for row in rows if row["from"] == "(1.00335, 0.32295)"]
    assert len(ratios) == 4 and ratios == pytest.approx([1] * 4, abs=0.02)
    for vector in ("LTE", "ERK solution difference"):
        for point in {row["from"] for row in rows}:
            along, across = (row["here"] for row in rows
                             if (row["from"], row["vector"]) == (point, vector))  # fmt: skip
            assert along > across

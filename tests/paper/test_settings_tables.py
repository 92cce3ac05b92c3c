"""Tables 5 and 9, which show settings and sample nothing."""

import json

import pytest

from scripts.paper.config import load_config
from scripts.paper.settings import pair_of


def rows_of(folder, name):
    """The rows in a page's .json file."""
    return json.loads((folder / f"{name}.json").read_text("utf-8"))["rows"]


def test_table5_shows_the_weights_of_table4(run, tmp_path):
    run("table5")
    rows = rows_of(tmp_path / "results", "table5")
    assert len(rows) == 18 and {row["nfe"] for row in rows} == {6, 8, 10}
    expected = {(row["preset"][:5], row["solver"], row["nfe"]): row["w_stiff"] for row in rows}
    assert expected["edm-i", "heun", 8] == 1.25 and expected["edm-f", "deis", 10] == 3.5
    text = (tmp_path / "results" / "table5.md").read_text("utf-8")
    assert "| heun | 0.5 | 1.25 | 1.5 |" in text and "| deis | 2.5 | 2.5 | 2.5 |" in text


def test_table9_finds_what_the_paper_prints(run, tmp_path):
    run("table9")
    rows = rows_of(tmp_path / "results", "table9")
    printed = [row for row in rows if row["published"]]
    assert [row["name"] for row in printed] == ["Heun", "DPM-Solver-2S", "DEIS"]
    for row in printed:
        ours, published = row["ours"], row["published"]
        assert {*ours["pair"].split(", ")} == {*published["pair"].split(", ")}
        assert (ours["h"], ours["beta"]) == (published["h"], published["beta"])
    assert [row["ours"]["from step"] for row in printed] == [2, 1, 2]
    assert {row["ours"]["beta"] for row in rows[3:6]} == {"{0, −1}"}


def test_a_pair_without_a_name_is_an_error():
    row = load_config("table9").rows[0]
    swapped = row.model_copy(
        update={"settings": {"twin": lambda step, before: (step.start, step.h)}}
    )
    with pytest.raises(ValueError, match="has no symbol in the paper"):
        pair_of(swapped)

"""Pages as csv, md, tex, html and json, and what a sampled table's page says."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest

from metrics.protocols import find_protocol
from scripts.paper.config import Request, load_config
from scripts.paper.pages import page_of
from scripts.paper.render import (
    Block,
    Page,
    best_cells,
    heading,
    to_csv,
    to_html,
    to_json,
    to_md,
    to_tex,
    write_page,
)

MADE = {"command": "reproduce.py table2 --num 4", "commit": "abc", "device": "cpu",
        "versions": {"torch": "2.8", "python": "3.11"}}  # fmt: skip
PAGE = Page(
    "table2",
    "A & B: 50 % of x_i",
    "sampled",
    "embedded",
    [
        Block(
            "First {block}",
            ["row", "fd", "note"],
            [{"row": "a|b", "fd": (1.234, 0.05), "note": "−"}, {"row": "<c>", "fd": None}],
            frozenset({(0, "fd")}),
        ),
        Block("Second", ["row", "n"], [{"row": "σ_i", "n": 3}]),
    ],
    [{"name": "a", "ours": {"fd": 1.234}, "se": {"fd": 0.05}}, {"name": "c", "late": 1}],
    ["A note of 5 %."],
    [MADE],
    ["table2.png", "table2.pdf"],
)


def test_markdown():
    lines = to_md(PAGE).splitlines()
    assert lines[0] == "# A & B: 50 % of x_i"
    assert "| row | fd | note |" in lines and "| --- | ---: | --- |" in lines
    assert "| a\\|b | **1.234 ± 0.050** | − |" in lines and "| <c> | – | – |" in lines
    assert "![table2](table2.png)" in lines and "![table2](table2.pdf)" not in lines
    assert lines[-1] == (
        "Made by `reproduce.py table2 --num 4` at commit abc on cpu with torch 2.8, python 3.11."
    )


def test_csv_and_json_hold_the_rows_in_full():
    rows = list(csv.DictReader(io.StringIO(to_csv(PAGE.data))))
    assert rows[0] == {"name": "a", "ours.fd": "1.234", "se.fd": "0.05", "late": ""}
    assert rows[1]["late"] == "1" and rows[1]["ours.fd"] == ""
    told = json.loads(to_json(PAGE))
    assert told["rows"] == PAGE.data and told["scale"] == "embedded" and told["made_by"] == [MADE]
    assert told["columns"] == [["First {block}", "row", "fd", "note"], ["Second", "row", "n"]]
    assert told["files"] == list(PAGE.files) and told["notes"] == list(PAGE.notes)


def test_latex():
    text = to_tex(PAGE)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"\begin{tabular}{lrl}" in text and r"\caption{A \& B: 50 \% of x\_i}" in text
    assert r"a|b & \textbf{1.234 $\pm$ 0.050} & $-$ \\" in text and r"$\sigma$\_i & 3 \\" in text
    assert text.isascii() and r"First \{block\}" in text
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert line.replace(r"\&", "").count("&") in (1, 2)


class Cells(HTMLParser):
    """The texts of all cells, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag != "img":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data


def test_html():
    text = to_html(PAGE)
    read = Cells(text)
    assert read.open == [] and text.isascii() and text.startswith('<section id="table2"')
    assert read.cells == ["row", "fd", "note", "a|b", "1.234 ± 0.050", "−", "<c>", "–", "–",
                          "row", "n", "σ_i", "3"]  # fmt: skip
    assert (
        '<td class="number"><strong>1.234' in text
        and '<div class="scroll"><img src="table2.png"' in text
    )
    assert "table2.pdf" not in text


def test_files(tmp_path):
    paths = write_page(tmp_path / "new", PAGE)
    ends = ["csv", "md", "tex", "html", "json"]
    assert [path.name for path in paths] == [f"table2.{end}" for end in ends]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        path.name for path in paths
    )


def test_best_cells():
    rows = [{"fd": (3, 1), "is": 5}, {"fd": (2, 1), "is": 5}, {"fd": (1, 1)}, {"fd": None, "is": 4}]
    best = {"fd": "low", "is": "high"}
    assert best_cells(rows, best, [0, 0, 0, 0]) == {(2, "fd"), (0, "is"), (1, "is")}
    assert best_cells(rows, best, [0, 0, 1, 1]) == {(1, "fd"), (0, "is"), (1, "is")}
    assert best_cells(rows, best, [0, 1, 2, 3]) == frozenset()


@pytest.mark.parametrize(
    ("name", "start"),
    [("table2", "Table 2, embedded scale (digits): "), ("fig8_9", "Figure 8, 9, "),
     ("figure3", "Figure 3, "), ("other", "other, embedded")],
)  # fmt: skip
def test_heading(name, start):
    config = load_config("table2")._replace(name=name)
    assert heading(config, "embedded", "digits").startswith(start)
    assert heading(config._replace(name="table5"), None) == f"Table 5: {config.title}"


def found(n, scale, **values):
    """A row's file as sampled.py writes it."""
    protocol = {"paper": "erk-paper", "embedded": "digits"}[scale]
    return {
        "settings": {"w_stiff": 0.0}, "seeds": f"0-{n - 1}", "batch": 4, "nfe": 63.0,
        "guide_nfe": 0.0, "protocol": protocol, "n": n, "reference": "ref", **values,
        **{f"{name}_se": 0.1 for name in values},
        "replicates": {name: [value - 0.01, value, value + 0.01] for name, value in values.items()},
        "notes": [], "made_by": MADE, "spent": {"seconds": 2.0, "images": n, "processes": 1},
    }  # fmt: skip


def rows_with(rows):
    return [rows.get(i, {}) for i in range(10)]


def test_page_at_paper_scale_gives_differences_to_the_published():
    config, request = load_config("table2"), Request(scale="paper")
    values = {"fd_dinov2": 91.0, "fid": 2.6, "precision": 0.67, "recall": 0.63, "is": 240.0}
    better = values | {"fid": 2.5}
    rows = {0: found(50000, "paper", **values), 1: found(50000, "paper", **better)}
    page = page_of(config, request, rows_with(rows))
    assert page.name == "table2-paper" and page.title.startswith("Table 2, paper scale (ref): ")
    minus = page.data[0]["minus_published"]
    assert minus["fd_dinov2"] == pytest.approx(0.9) and minus["fid"] == pytest.approx(0.02)
    assert minus["precision"] == pytest.approx(0.67 - 0.672)  # with the exchanged column
    assert minus["recall"] == pytest.approx(0.63 - 0.631)
    paired = page.data[1]["paired"]["fid"]
    assert paired["value"] == pytest.approx(-0.1) and paired["exceeds"]
    assert page.data[1]["paired"]["is"]["value"] == 0 and page.data[2]["measured"] is False
    text = to_md(page)
    assert "| 32 steps, w_stiff 0.5 | 63 | **91.00 ± 0.10** | **2.50 ± 0.10** |" in text
    assert find_protocol("erk-paper").note in text and "ours − fid" in text
    assert "fid, of 1 paired differences: better in 1 (32 steps, w_stiff 0.5)." in text
    assert "NOT MEASURED YET: 8 of 10 rows" in text and "--rows 2,3,4,5,6,7,8,9." in text
    few = page_of(config, request, rows_with({0: found(1000, "paper", **values)}))
    assert few.data[0]["minus_published"] == {}


def test_page_at_embedded_scale_never_compares_with_the_paper():
    config = load_config("table2")
    values = {"fd": 2.0, "precision": 0.7, "recall": 0.9, "is": 9.0, "accuracy": 0.9}
    worse = values | {"fd": 2.5}
    row = found(50000, "embedded", **worse)
    row["spent"]["images"] = 10  # the rest was there before
    page = page_of(config, Request(), rows_with({0: found(50000, "embedded", **values), 1: row}))
    assert "embedded scale" in page.title and page.name == "table2"
    assert all(not one.get("minus_published") for one in page.data)
    text = to_md(page)
    assert "ours −" not in text and "These are not the paper's numbers" in text
    assert "no difference to them is formed" in text and "| **82.8** | 2.74 |" in text
    assert "fd, of 1 paired differences: worse in 1 (32 steps, w_stiff 0.5)." in text
    assert page.data[0]["seconds"] == 2.0 and page.data[1]["seconds"] is None


def test_page_without_any_row():
    page = page_of(load_config("table4"), Request(), [{}] * 36)
    assert "NOT MEASURED YET: 36 of 36 rows" in to_md(page) and page.made_by == []
    assert len(page.blocks) == 2

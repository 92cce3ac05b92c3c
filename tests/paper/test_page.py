"""A page as .json, .csv, .md, .tex and .html."""

import csv
import io
from html.parser import HTMLParser

import pytest

from scripts.paper.html import to_html
from scripts.paper.page import (
    Page,
    Table,
    as_typed,
    best_cells,
    read_page,
    significant,
    table_of,
    to_csv,
    to_md,
    to_tex,
    write_page,
)

MADE_BY = {"command": "reproduce.py table2 --num 4", "commit": "abc", "device": "cpu",
           "versions": {"torch": "2.8", "python": "3.11"}}  # fmt: skip
PAGE = Page(
    name="table2",
    title="A & B: 50 % of x_i",
    kind="toy",
    scale=None,
    tables=[
        Table(
            caption="First {table}",
            columns=["row", "fd", "note"],
            rows=[{"row": "a|b", "fd": (1.234, 0.05), "note": "−"}, {"row": "<c>", "fd": None}],
            bold=[(0, "fd")],
        ),
        table_of("Second", [{"row": "σ_i", "n": 3}]),
    ],
    rows=[{"name": "a", "ours": {"fd": 1.234}, "se": {"fd": 0.05}}, {"name": "c", "late": 1}],
    notes=["A note of 5 %."],
    made_by=[MADE_BY],
    files=["table2.png"],
)


def test_markdown():
    lines = to_md(PAGE).splitlines()
    assert lines[0] == "# A & B: 50 % of x_i"
    assert "| row | fd | note |" in lines and "| --- | ---: | --- |" in lines
    assert "| a\\|b | **1.234 ± 0.050** | − |" in lines and "| &lt;c> | – | – |" in lines
    assert "![table2](table2.png)" in lines
    assert lines[-1] == (
        "Made by `python reproduce.py table2 --num 4` at commit abc on cpu with "
        "torch 2.8, python 3.11."
    )


@pytest.mark.parametrize(("recorded", "typed"), [
    ("-m scripts.paper.reproduce --processes auto table2 --num 4",
     "bash scripts/table2.sh --num 4"),
    ("scripts/reproduce.py --processes auto figure3", "bash scripts/figure3.sh"),
    ("-m scripts.paper.reproduce table2", "python -m scripts.paper.reproduce table2"),
    ("-m scripts.paper.demo --seeds 0-9", "bash scripts/demo.sh --seeds 0-9"),
    ("-m scripts.studies auto --data toy", "python -m scripts.studies auto --data toy"),
    ("generate.py --preset digits", "python generate.py --preset digits"),
    ("erk generate --net file.py", "erk generate --net file.py"),
])  # fmt: skip
def test_commands_are_printed_as_users_type_them(recorded, typed):  # N9
    assert as_typed(recorded) == typed


def test_csv_holds_the_rows_in_full_precision():
    rows = list(csv.DictReader(io.StringIO(to_csv(PAGE.rows))))
    assert rows[0] == {"name": "a", "ours.fd": "1.234", "se.fd": "0.05", "late": ""}
    assert rows[1]["late"] == "1" and rows[1]["ours.fd"] == ""
    assert to_csv([{"x": 0.1 + 0.2}]) == "x\n0.30000000000000004\n"


def test_json_holds_the_page(tmp_path):
    write_page(tmp_path, PAGE)
    assert read_page(tmp_path / "table2.json") == PAGE


def test_latex():
    text = to_tex(PAGE)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"\begin{tabular}{lrl}" in text and r"\caption{A \& B: 50 \% of x\_i}" in text
    assert r"a|b & \textbf{1.234 $\pm$ 0.050} & $-$ \\" in text and r"$\sigma$\_i & 3 \\" in text
    assert text.isascii() and r"First \{table\}" in text
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")


class Cells(HTMLParser):
    """The texts of all cells; every element must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "meta", "link"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data


def test_html_is_escaped_ascii():
    text = to_html(PAGE)
    parsed = Cells(text.removeprefix("<!doctype html>"))
    assert parsed.open == [] and text.isascii() and '<section id="table2"' in text
    assert parsed.cells == ["row", "fd", "note", "a|b", "1.234 ± 0.050", "−", "<c>", "–", "–",
                            "row", "n", "σi", "3"]  # fmt: skip
    assert "&#963;<sub>i</sub>" in text
    assert '<td class="number"><strong>1.234' in text
    assert '<div class="scroll"><img src="table2.png"' in text


def test_files(tmp_path):
    paths = write_page(tmp_path / "new", PAGE, {"table2.png": b"png"})
    names = [*(f"table2.{end}" for end in ("json", "csv", "md", "tex", "html")), "table2.png"]
    assert [path.name for path in paths] == names
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*names}


def test_best_cells_are_those_of_each_group():
    rows = [{"fd": (3, 1), "is": 5}, {"fd": (2, 1), "is": 5}, {"fd": (1, 1)}, {"fd": None, "is": 4}]
    best = {"fd": "low", "is": "high"}
    assert best_cells(rows, best, [0, 0, 0, 0]) == [(0, "is"), (1, "is"), (2, "fd")]
    assert best_cells(rows, best, [0, 0, 1, 1]) == [(0, "is"), (1, "fd"), (1, "is")]
    assert best_cells(rows, best, [0, 1, 2, 3]) == []


def test_significant_digits():
    assert significant(1.23456789) == 1.23457 and significant(float("nan")) is None

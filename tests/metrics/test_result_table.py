"""Tables: aligned, complete, written whole."""

import csv
import io
import json

import pytest

from metrics.table import cell, to_csv, to_json, to_markdown, to_text, write

ROWS = [
    {"solver": "heun", "FD": (12.3456, 0.0471), "steps": 8, "recall": 0.97},
    {"solver": "heun + ERK|Guid", "FD": (362.49, 12.0), "steps": 16, "recall": None},
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (12345.6, "12346"),
        (362.149, "362.1"),
        (1797, "1797"),
        ("heun", "heun"),
        ((3.851, 0.1623), "3.85 ± 0.16"),
        ((8.1e-05, 0.012), "0.000 ± 0.012"),
        ((3.851, 0.0), "3.851"),
        ((3.851, None), "3.851"),
        (999999.0, "999999"),
        (1e-7, "1e-07"),
    ],
)
def test_cell(value, text):
    assert cell(value) == text


def test_text_is_aligned():
    lines = to_text(ROWS).splitlines()
    assert lines[0].split() == ["solver", "FD", "steps", "recall"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("heun  ") and lines[2].endswith("0.97")
    assert to_text(ROWS, ["steps"]) == "steps\n-----\n    8\n   16\n"


def test_markdown():
    lines = to_markdown(ROWS, ["solver", "FD"]).splitlines()
    assert lines[:2] == ["| solver | FD |", "| --- | ---: |"]
    assert lines[3] == "| heun + ERK\\|Guid | 362 ± 12 |"


def test_csv_keeps_full_precision():
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert rows[0]["FD"] == "12.3456" and rows[0]["FD_se"] == "0.0471"
    assert rows[1]["recall"] == ""
    assert to_csv(ROWS, ["FD"]).splitlines()[0] == "FD,FD_se"


def test_json():
    assert json.loads(to_json(ROWS[0]))["FD_se"] == 0.0471
    assert len(json.loads(to_json(ROWS))) == 2


def test_write_is_all_or_nothing(tmp_path):
    path = write(tmp_path / "deep" / "row.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "\ud800")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["row.json"]
    write(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(OSError):
        write(path / "below" / "a.file", "x")

"""Rows as text, Markdown and CSV: aligned, complete, readable numbers."""

import csv
import io

import pytest

from metrics.report import number, to_csv, to_markdown, to_text

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
def test_number(value, text):
    assert number(value) == text


def test_text_is_aligned():
    lines = to_text(ROWS).splitlines()
    assert lines[0].split() == ["solver", "FD", "steps", "recall"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("heun  ") and lines[2].endswith("0.97")


def test_markdown():
    lines = to_markdown(ROWS, ["solver", "FD"], bold=[(1, "FD")]).splitlines()
    assert lines == [
        "| solver | FD |",
        "| --- | ---: |",
        "| heun | 12.346 ± 0.047 |",
        "| heun + ERK\\|Guid | **362 ± 12** |",
    ]
    published = to_markdown([{"FID": "2.60", "name": "a"}, {"FID": "-3", "name": "2.6.0"}])
    assert published.splitlines()[1] == "| ---: | --- |"  # decimal texts are numbers


def test_csv_keeps_full_precision():
    rows = [{"FD": 12.3456789012345, "recall": None, "options": {"a": 1}}]
    (row,) = csv.DictReader(io.StringIO(to_csv(rows)))
    assert row == {"FD": "12.3456789012345", "recall": "", "options": '{"a": 1}'}

"""Text from files is shown, never obeyed (M19, F11)."""

import os

import pytest

from erk.io.text import plain_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café ± 画像", "café ± 画像"),
        ("a\n\x1b[2Jb\x9b", r"a\n\x1b[2Jb\x9b"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # written from right to left
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),  # F11
        ("\ud800", r"\ud800"),
    ],
)
def test_what_is_not_printable_is_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_controls_may_pass():
    assert printable("a\tb\nc\r", "\n\t") == "a\tb\nc\\r"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_spreadsheets_compute_no_text(text):
    assert plain_cell(text) == f"'{text}"
    assert plain_cell(-1.5) == -1.5 and plain_cell("a=b") == "a=b"

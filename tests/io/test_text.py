"""Text from files cannot control the terminal or a spreadsheet."""

import os

from erk.io.text import plain_cell, printable


def test_control_characters_are_escaped():
    """M19, F11"""
    assert printable("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
    assert printable("a\nb", "\n") == "a\nb"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert printable("café 図") == "café 図"


def test_formulas_are_no_cells():
    """M19"""
    assert plain_cell("=1+1") == "'=1+1"
    assert plain_cell("out/a") == "out/a"
    assert plain_cell(-1.5) == -1.5

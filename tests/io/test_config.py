"""Errors in a YAML file name the file, the row, the key and the value."""

import re
from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from erk.io.config import read_config


class Row(BaseModel, extra="forbid"):
    net: str
    guidance: float = 1.0


@dataclass
class Item:
    net: str
    sizes: tuple[int, ...] = ()

    __pydantic_config__ = {"extra": "forbid"}


def test_a_valid_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("one: {net: a.pkl}\ntwo: {net: b.pkl, guidance: 2}\n")
    rows = read_config(path, dict[str, Row])
    assert rows["one"].guidance == 1 and rows["two"].net == "b.pkl"


@pytest.mark.parametrize("kind", [Row, Item])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: {}", ": row 'one': net: missing: add it"),
        ("one: {net: 1}", ": row 'one': net: Input should be a valid string, not 1"),
        ("one: {net: a}\ntwo: {net: b, ent: 2}", ": row 'two': ent: unknown key; did you mean net"),
        ("one: {net: b, sice: 2}", ": row 'one': sice: unknown key; "),
        ("- 1", ": must be a mapping of names to rows, not \\[1\\]"),
        ("one: b.pkl", ": row 'one': must be a mapping of net, .*, not 'b.pkl'"),
        ("one: {net: [", ":1: not readable YAML"),
        ("one: {net: a}\none: {net: b}", ":2: not readable YAML \\(two values for 'one'"),
        (f"one: {{net: {[0] * 99}}}", "not \\[0, 0.*\\.\\.\\."),
        ("one: {net: \xff", ": not UTF-8 text"),
        (f"one: {'[' * 5000}", ": not readable YAML \\(nested too deeply\\)"),
        ("#" * (2 << 20), ": 2097152 bytes; at most 1048576 are allowed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_names_the_row_and_the_key(tmp_path, kind, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text, "latin-1")
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message) as error:
        read_config(path, dict[str, kind])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_keys_within_a_row_are_named(tmp_path):
    class Nested(BaseModel, extra="forbid"):
        rows: list[Row] = []
        items: dict[str, Item] = {}

    path = tmp_path / "a.yaml"
    for text, message in (
        ("rows: [{net: a}, {net: b, guidance: strong}]", ": row 1: guidance: .*, not 'strong'"),
        ("rows: [{name: Heun, net: a}]", ": row 0 'Heun': name: unknown key; known are net, guida"),
        ("items: {x: {net: a, sizes: [1, b]}}", ": items.x.sizes.1: .*integer.*, not 'b'"),
        ("items: {x: {net: a, size: [1]}}", ": items.x.size: unknown key; did you mean sizes?"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(str(path)) + message):
            read_config(path, Nested)

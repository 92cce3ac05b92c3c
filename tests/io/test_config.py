"""Errors in a YAML file name the file, the row, the key and the value."""

import re

import pytest
from pydantic import BaseModel, RootModel

from erk.io.config import read_config


class Row(BaseModel, extra="forbid"):
    net: str
    guidance: float = 1.0


class Table(RootModel[dict[str, Row]]):
    pass


def test_a_valid_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("one: {net: a.pkl}\ntwo: {net: b.pkl, guidance: 2}\n")
    rows = read_config(path, Table).root
    assert rows["one"].guidance == 1 and rows["two"].net == "b.pkl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: {}", "one.net: Field required"),
        ("one: {net: a, guidance: strong}", "one.guidance: .*number.*, not 'strong'"),
        ("one: {net: a, giudance: 2}", "one.giudance: Extra inputs are not permitted, not 2"),
        ("- 1", "the top level: .*dictionary, not \\[1\\]"),
        ("one: {net: [", "is not valid YAML: "),
        (f"one: {{net: {[0] * 99}}}", "not \\[0, 0.*\\.\\.\\."),
    ],
)
def test_an_error_names_the_row_and_the_key(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message) as error:
        read_config(path, Table)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400

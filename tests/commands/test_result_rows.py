"""The file of each row is its alone, whatever the path of the images."""

import pytest

from erk.commands.result_rows import DEFAULTS, row_paths

OPTIONS = DEFAULTS | {"ref": "digits", "real": None, "json_path": None}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_paths_do_not_share_a_file():
    images = ["a/b", "a-b", "a/b.zip", "a-b-zip", "a/b-zip"]
    assert len(set(row_paths(images, OPTIONS))) == len(images)


def test_simple_names_stay_simple():
    assert [path.as_posix() for path in row_paths(["out"], OPTIONS)] == ["results/out-digits.json"]


@pytest.mark.parametrize("name", ["x" * 255, "図" * 80, "caf\udce9", "a\nb"])
def test_names_can_be_written(name):
    """F11, and names over 255 characters."""
    (path,) = row_paths([name], OPTIONS)
    path.parent.mkdir()
    path.write_text("{}", "utf-8")
    assert len(path.name.encode()) <= 255

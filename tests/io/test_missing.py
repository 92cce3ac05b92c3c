"""All missing files of a run are named at once."""

import pytest

from erk.io.missing import name_missing

FILES = ["https://h/a.pth", None, "https://h/b.pth", "https://h/a.pth", "local.pth", "hf://o/r/f"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    monkeypatch.delenv("ERK_OFFLINE", raising=False)
    return tmp_path


def test_two_missing_files_are_named_with_their_paths(cache, capsys, monkeypatch):
    name_missing(FILES)
    lines = [f"  https://h/{one}\n    to {cache}/h/{one}\n" for one in ("a.pth", "b.pth")]
    assert capsys.readouterr().err == f"downloading 2 missing files:\n{''.join(lines)}"
    listed = f"https://h/a.pth \\({cache}/h/a.pth\\), https://h/b.pth \\({cache}/h/b.pth\\): "
    with pytest.raises(FileNotFoundError, match=f"^2 files are not in the cache, {listed}"):
        name_missing(FILES, offline=True)
    monkeypatch.setenv("RANK", "1")
    name_missing(FILES)
    assert capsys.readouterr().err == ""


def test_addresses_that_differ_in_what_is_not_shown_are_two_files(cache):
    with pytest.raises(FileNotFoundError, match="^2 files are not in the cache, https://h/a "):
        name_missing(["https://h/a?id=1", "https://h/a?id=2", "https://h/a?id=2&token=x"], True)


def test_a_single_missing_file_is_left_to_fetch(cache, capsys):
    (cache / "h").mkdir()
    (cache / "h" / "a.pth").touch()
    name_missing(FILES)
    name_missing(FILES, offline=True)
    assert capsys.readouterr().err == ""

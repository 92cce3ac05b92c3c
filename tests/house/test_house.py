"""Rules of the source tree that no linter checks; the layers are import-linter's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = [
    path
    for folder in (".", "erk", "metrics", "scripts", "tests")
    for path in sorted((ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))
]
PRODUCT = [path for path in PYTHON if not path.is_relative_to(ROOT / "tests")]
MOST_LINES = 400
NETWORKS = {"erk/models/edm.py", "erk/models/edm2.py"}  # one network, one file


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def with_pattern(pattern, paths):
    """Return the names of the files that contain the pattern, except this one."""
    texts = {path: path.read_text("utf-8") for path in paths if path != Path(__file__)}
    return [name_of(path) for path, text in texts.items() if re.search(pattern, text)]


def test_the_tree_is_found():
    assert len(PRODUCT) > 100 and len(PYTHON) > len(PRODUCT)


def test_files_are_short():
    lines = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in PYTHON}
    long = {name: n for name, n in lines.items() if n > MOST_LINES and name not in NETWORKS}
    assert long == {}


def test_at_most_three_modules_directly_in_erk():
    assert len([*(ROOT / "erk").glob("*.py")]) <= 3


def test_nothing_changes_the_import_path():
    assert with_pattern(r"sys\.path\.(insert|append)", PYTHON) == []


@pytest.mark.parametrize("pattern", [r"\.\./shared", r"^\s*(from|import) tests\b"])
def test_the_product_stands_alone(pattern):
    assert with_pattern(re.compile(pattern, re.M), PRODUCT) == []


def test_test_modules_have_distinct_names():
    """pytest imports them by name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

"""The recorded command repeats the run."""

import sys
from types import SimpleNamespace

import pytest

from erk.runtime.provenance import provenance


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ("scripts.studies.__main__", "-m scripts.studies auto --seeds 8"),
        ("scripts.paper.reproduce", "-m scripts.paper.reproduce auto --seeds 8"),
        (None, "generate.py auto --seeds 8"),
    ],
)
def test_modules_are_recorded_as_python_runs_them(monkeypatch, spec, command):
    main = SimpleNamespace(__spec__=spec and SimpleNamespace(name=spec))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["generate.py", "auto", "--seeds", "8"])
    assert provenance()["command"] == command

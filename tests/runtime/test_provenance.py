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


def test_the_command_shows_no_secrets(monkeypatch):
    """M18: users, passwords and queries of addresses stay out of run.json and result rows."""
    address = "https://me:pw@host/x.pkl"
    monkeypatch.setattr(sys, "argv", ["erk", "--net", f"{address}?token=S", f"--gnet={address}#S"])
    command = provenance()["command"]
    assert command.endswith("--net https://host/x.pkl --gnet=https://host/x.pkl")

"""Runs of `generate` that nothing happens to, and the command in an empty folder."""

import pytest
from click.testing import CliRunner
from command_runs import complete_runs
from injection import JOB, KINDS

from erk.commands.generate import main


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return the folder of runs of JOB by one process that nothing happens to: png, zip, npz."""
    return complete_runs(tmp_path_factory, JOB, KINDS)


@pytest.fixture
def generate(tmp_path, monkeypatch):
    """Return a function that runs `generate` in an empty folder; it never shows a traceback."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, kind="png"):
        done = CliRunner().invoke(main, [*map(str, arguments), "--format", kind])
        assert "Traceback" not in done.output, done.output
        return done

    return call


@pytest.fixture
def out(tmp_path):
    """Return the path of a run's folder, which does not exist yet, nor does its parent."""
    return tmp_path / "runs" / "out"

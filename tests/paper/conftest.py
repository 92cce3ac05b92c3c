"""The reproduce command, run in this process."""

import os

import pytest
from click.testing import CliRunner

from scripts.paper import reproduce


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with its own cache and results, and expects it to succeed."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)

    def command(*arguments, results="results", code=0):
        options = [*map(str, arguments), "--results", str(tmp_path / results)]
        done = CliRunner().invoke(reproduce.main, options)
        assert done.exit_code == code, done.output
        return done.output

    return command

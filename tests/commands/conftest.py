"""Commands in this process; features of a test are kept in its folder, not in the machine's cache.

Starting torch takes seconds, so what can run in this process does; the tests that need processes
say so.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erk.commands.generate import main


@pytest.fixture(autouse=True)
def feature_store(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One empty store of features per test."""
    folder = tmp_path_factory.mktemp("store")
    monkeypatch.setattr("metrics.options.default_folder", lambda: folder)


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `erk generate` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(one) for one in arguments])

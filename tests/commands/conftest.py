"""Features of a test are kept in its own folder, never in the machine's cache."""

import pytest


@pytest.fixture(autouse=True)
def feature_store(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One empty store of features per test."""
    folder = tmp_path_factory.mktemp("store")
    monkeypatch.setattr("metrics.judge.default_folder", lambda: folder)

"""The features of a test are its own."""

import pytest


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a test are its own, never those of the machine's cache."""
    monkeypatch.setattr("metrics.judge.default_folder", lambda: tmp_path_factory.mktemp("store"))

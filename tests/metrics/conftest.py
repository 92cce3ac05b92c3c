"""Every test stores features in a folder of that test."""

import pytest


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's cache out of the tests."""
    folder = tmp_path_factory.mktemp("store")
    monkeypatch.setattr("metrics.options.default_folder", lambda: folder)

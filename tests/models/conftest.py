"""Networks in files, and an empty cache of downloads."""

import shutil

import pytest
from golden_data import pickle_paths
from stored_networks import convert


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Return the path of a network that `erk convert` wrote."""
    path = tmp_path_factory.mktemp("converted") / "net.safetensors"
    code, _, errors = convert(pickle_paths("edm2_cond")[0], path)
    assert code == 0, errors
    return path


@pytest.fixture
def copy(converted, tmp_path):
    """Return the path of a converted network with its metadata, which a test may damage."""
    for file in converted, converted.with_suffix(".json"):
        shutil.copy(file, tmp_path)
    return tmp_path / converted.name


@pytest.fixture
def empty_cache(monkeypatch, tmp_path_factory):
    """Use an empty cache of downloads, online."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("ERK_OFFLINE", raising=False)

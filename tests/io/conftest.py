"""A server on the loopback address, for tests of downloads."""

import threading

import pytest
from download_site import Site

from erk.io import download


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("ERK_OFFLINE", raising=False)
    with Site() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()

"""Servers that would hold a connection open, and those that give none."""

import socket

import pytest
import requests
from download_site import BODY, HASH
from urllib3.exceptions import (
    ConnectTimeoutError,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
)

from erk.io import download
from erk.io.connection import is_unreachable
from erk.io.download import fetch


@pytest.mark.parametrize("fault", ["slow headers", "trailers"])
def test_what_comes_slowly_beside_the_body(site, tmp_path, monkeypatch, fault):
    """J7: http.client reads headers and trailers in one call, which bytes keep alive."""
    monkeypatch.setattr(download, "WINDOW", 0.3)
    site.faults = [fault] * 99
    with pytest.raises(ConnectionError, match=r"net.pkl does not answer within 0.3 s \(5 tries\)"):
        fetch(site.url, cache=tmp_path)
    assert not [*tmp_path.rglob("net*.pkl")] and len(site.asked) == download.TRIES
    site.faults = []
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY


def test_a_few_bytes_per_try_are_no_progress(site, tmp_path):
    """J7: 100 000 tries would get the file; half of it per try (below) is progress."""
    site.faults = ["few"] * 99
    with pytest.raises(ConnectionError, match=r"net.pkl was interrupted: .*\(5 tries\)"):
        fetch(site.url, cache=tmp_path)
    assert len(site.asked) == download.TRIES and site.asked[-1] == "bytes=40-"
    site.faults = ["cut"] * 3
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY


def test_the_body_of_a_redirect_is_not_read(site, tmp_path):
    """J7: requests would read it into memory; sockets buffer some MB of it."""
    site.faults = ["long redirect"]
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    assert site.endless < 64 << 20


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_refused_connection_is_tried_once_more(site, tmp_path, monkeypatch):
    """A lookup without internet takes 20 s: five tries made a user wait two minutes."""
    with pytest.raises(ConnectionError, match=r"answer .*\(2 tries\)"):
        fetch(f"http://127.0.0.1:{closed_port()}/a.pkl", cache=tmp_path)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(ConnectionError, match=r"\(ProxyError\) \(2 tries\)"):
        fetch(site.url, cache=tmp_path)


def test_a_host_that_drops_packets_is_unreachable_too():
    reasons = ConnectTimeoutError(), NewConnectionError(None, ""), ReadTimeoutError(None, "", "")
    failed = [requests.ConnectionError(MaxRetryError(None, "", reason)) for reason in reasons]
    assert [*map(is_unreachable, failed)] == [True, True, False]


@pytest.mark.parametrize("first", [503, "cut"])
def test_a_server_that_was_reached_is_tried_five_times(site, tmp_path, monkeypatch, first):
    """It may restart."""
    site.faults, transfer, tries = [first], download._transfer, []

    def once(url, part):
        tries.append(url)
        if len(tries) == 2:
            site.server_close()
        transfer(url, part)

    monkeypatch.setattr(download, "_transfer", once)
    with pytest.raises(ConnectionError, match=r"does not answer .*\(5 tries\)"):
        fetch(site.url, cache=tmp_path)
    assert len(tries) == 5

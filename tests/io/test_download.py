"""Downloads from a real HTTP server on the loopback address, with faults on demand."""

import errno
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from download_site import BODY, HASH, Site

from erk.io import download
from erk.io.download import cache_dir, fetch
from erk.io.files import sha256_of

ROOT = Path(__file__).parents[2]


def names(folder):
    """Return the names of all files, without the digits of their addresses."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(re.sub("-[0-9a-f]{32}", "", path.name) for path in paths)


def test_downloads_once_into_a_readable_path(site, tmp_path):
    path = fetch(site.url, HASH.upper(), cache=tmp_path)
    assert path == tmp_path / download.cache_name(site.url)
    assert path.parent == tmp_path / "127.0.0.1" / "models"
    assert path.read_bytes() == BODY
    assert fetch(site.url, HASH, cache=tmp_path) == path == fetch(site.url, cache=tmp_path)
    assert len(site.asked) == 1
    assert set(names(tmp_path)) <= {"net.pkl", "net.pkl.lock", "net.pkl.sha256"}
    assert path.with_name(f"{path.name}.sha256").read_text() == HASH + "\n"
    site.body = b""
    assert fetch(site.url + "2", cache=tmp_path).read_bytes() == b""


def test_queries_are_distinguished_and_secrets_are_not_shown(site, tmp_path):
    one, two = (fetch(f"{site.url}?id={n}&token={n}", cache=tmp_path) for n in "12")
    assert one != two and one.suffix == ".pkl"
    assert fetch(f"{site.url}?id=1&token=renewed", cache=tmp_path) == one  # M18
    site.faults, secret = [404], site.url.replace("//", "//me:secret@") + "?token=a@secret"
    with pytest.raises(FileNotFoundError, match="^http://127[^@]*/net.pkl answered 404") as caught:
        fetch(secret, cache=tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("faults", [["cut"], ["cut", "cut", 503, "cut"], [503, 429], ["cut", 416]])
def test_continues_after_faults(site, tmp_path, faults):
    site.faults = list(faults)
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    assert len(site.asked) == len(faults) + 1
    assert faults[0] != "cut" or site.asked[1] == f"bytes={len(BODY) // 2}-"


@pytest.mark.parametrize("fault", ["reset", "stall", "chunks", "long"])
def test_continues_after_the_connection_ended(site, tmp_path, monkeypatch, fault):
    """Reset, stalled, without a length, or with a wrong one."""
    monkeypatch.setattr(download, "TIMEOUT", (10, 0.5))
    site.faults = [fault]
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    first, second = site.asked
    least = {"reset": 0, "stall": 200_000, "chunks": len(BODY) // 2, "long": len(BODY)}[fault]
    assert first is None and int((second or "bytes=0-")[6:-1]) >= least  # a reset may lose some
    assert set(names(tmp_path)) <= {"net.pkl", "net.pkl.lock", "net.pkl.sha256"}


@pytest.mark.parametrize("fault", ["reset", "stall", "noise", "other range"])
def test_a_server_that_never_gets_it_right(site, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(download, "TIMEOUT", (10, 0.3))
    site.body, site.faults = BODY[:1000], [fault] * 99
    if fault == "other range":  # of an earlier try
        part = tmp_path / f"{download.cache_name(site.url)}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(BODY[:10])
        part.with_name(f"{part.name}.tag").write_text(site.etag)
        site.faults = [fault, *[500] * 99]
    with pytest.raises(ConnectionError, match=r"\(5 tries\): check the network") as caught:
        fetch(site.url, cache=tmp_path)
    assert "\n" not in str(caught.value) and "net.pkl" not in names(tmp_path)
    assert len(site.asked) <= 30


def test_a_file_that_is_shorter_than_it_should_be(site, tmp_path):
    """The server declares fewer bytes than the file has: the hash detects it."""
    site.faults = ["short"]
    with pytest.raises(ValueError, match=f"expected {HASH}"):
        fetch(site.url, HASH, cache=tmp_path)
    assert names(tmp_path) in ([], ["net.pkl.lock"])


def test_a_server_that_compresses_unasked(site, tmp_path):  # M22: could unpack to any size
    site.faults = ["gzip"]
    with pytest.raises(OSError, match="net.pkl is sent as gzip: download the file manually"):
        fetch(site.url, HASH, cache=tmp_path)


def test_a_body_without_a_length_has_a_limit(site, tmp_path, monkeypatch):  # M22
    monkeypatch.setattr(download, "LARGEST", 1000)
    site.faults = ["chunks"]
    with pytest.raises(OSError, match="net.pkl has more than 0 GiB"):
        fetch(site.url, cache=tmp_path)


def test_a_body_that_trickles(site, tmp_path, monkeypatch):
    """J7: 100 bytes per second keep the connection alive for years."""
    monkeypatch.setattr(download, "WINDOW", 0.5)
    site.faults = ["trickle"] * 9
    with pytest.raises(OSError, match="net.pkl sends less than 1000 bytes per second: run the com"):
        fetch(site.url, cache=tmp_path)
    site.released.set()
    assert "net.pkl" not in names(tmp_path)


@pytest.mark.parametrize("fault", ["many headers", "long header"])
def test_endless_headers_end_in_a_sentence(site, tmp_path, fault):
    """J7: http.client reads 100 lines of 64 KiB; a server may be broken once, so tries go on."""
    site.faults = [fault]
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    site.faults, site.asked = [fault] * 99, []
    with pytest.raises(ConnectionError, match=r"net.pkl2 does not answer .*\(5 tries\): check the"):
        fetch(site.url + "2", cache=tmp_path)
    assert len(site.asked) == download.TRIES and "net.pkl2" not in names(tmp_path)


@pytest.mark.parametrize("change", ["other etag", "other length"])
def test_a_rest_of_another_version_is_not_added(site, tmp_path, monkeypatch, change):  # M22
    site.faults = ["cut", change]
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    assert site.asked == [None, f"bytes={len(BODY) // 2}-", None]


ADDRESSES = [
    "https://h/a.pkl", "http://h/a.pkl", "https://h:8/a.pkl", "http://h:8/a.pkl",
    "https://h_8/a.pkl", "https://h/a:b", "https://h/a_b", "https://h/a.pkl?id=1",
    "https://h/a.pkl?id=2", "https://h//a.pkl",
    "http://h/a.b:c", "http://h/a.b_c", "http://h/a", "https://h/a/b.pkl", "https://h/a%2Fb.pkl", "https://h/A.pkl",
    "https://h/" + download.cache_name("http://h/a.pkl").name,
]  # fmt: skip


def test_metadata_lie_beside_their_network():
    paths = [download.cache_name(f"http://h/net.{kind}?id=1") for kind in ("safetensors", "json")]
    assert paths[0].with_suffix(".json") == paths[1]


def test_every_address_has_its_path():  # M22
    assert download.cache_name(ADDRESSES[0]) == Path("h/a.pkl")  # as before
    assert len({download.cache_name(address) for address in ADDRESSES}) == len(ADDRESSES)


@pytest.mark.parametrize("address", ["http://../esc/f", "https://./f", "https://h/../f",
                                     "https://h/a/./f", "https://.h/f"])  # fmt: skip
def test_no_address_leaves_the_cache(address):  # M22
    with pytest.raises(ValueError, match="names no file"):
        download.cache_name(address)


def test_each_try_and_its_cause_is_shown(site, tmp_path, capsys):  # N5
    site.faults = [503, "cut"]
    fetch(f"{site.url}?token=secret", cache=tmp_path)
    first, second = [line for line in capsys.readouterr().err.splitlines() if "trying" in line]
    assert re.search(r"net.pkl answered 503 .*; trying again in 0 s \(1 of 5\)", first)
    assert "bytes are missing; trying again" in second and "secret" not in first + second


def test_redirects(site, tmp_path):
    """One redirect is followed; circles and other schemes are not."""
    site.faults = ["/elsewhere/other.bin"]
    path = fetch(site.url, HASH, cache=tmp_path)
    assert path.name.startswith("net-") and path.read_bytes() == BODY
    site.faults, site.asked = ["/models/net.pkl"] * 99, []
    with pytest.raises(OSError, match="redirects in circles: check the address"):
        fetch(site.url + "2", cache=tmp_path)
    assert len(site.asked) <= 31  # requests' limit, once
    site.faults = ["file:///etc/passwd"]
    with pytest.raises(ValueError, match="cannot be used"):
        fetch(site.url + "3", cache=tmp_path)


def test_a_redirect_that_gives_up_encryption(site, tmp_path, monkeypatch):
    """https to https is followed, https to http is refused before a byte is read."""
    pem = tmp_path / "site.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout",
            pem, "-out", tmp_path / "cert.pem", "-subj", "/CN=127.0.0.1", "-addext",
            "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    if shutil.which("openssl") is None or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("no openssl that makes a certificate")
    cert = (tmp_path / "cert.pem").read_text()
    pem.write_text(pem.read_text() + cert)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with Site() as locked:
        locked.socket = context.wrap_socket(locked.socket, server_side=True)
        threading.Thread(target=locked.serve_forever, args=(0.02,), daemon=True).start()
        url = locked.url.replace("http:", "https:")
        locked.faults = ["/models/other.pkl"]
        assert fetch(url, HASH, cache=tmp_path / "cache").read_bytes() == BODY
        locked.faults = [site.url]
        with pytest.raises(OSError, match="redirects to an unencrypted address"):
            fetch(url + "2", cache=tmp_path / "cache")
        locked.shutdown()
    assert names(tmp_path / "cache").count("net.pkl2") == 0


def test_no_network(tmp_path, monkeypatch):
    """A failing name lookup: one sentence with the address, the cause and what to do, soon."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("ERK_OFFLINE", raising=False)
    failure = socket.gaierror(-3, "Temporary failure in name resolution")
    monkeypatch.setattr(socket, "getaddrinfo", lookup := Mock(side_effect=failure))
    with pytest.raises(ConnectionError, match=r"host.invalid/a.pkl does not answer") as caught:
        fetch("http://host.invalid/a.pkl", cache=tmp_path)
    assert "(2 tries): check the network" in str(caught.value) and lookup.call_count == 2
    assert "put the file at" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["etag", "no range", "no etag"])
def test_starts_over_where_it_cannot_resume(site, tmp_path, monkeypatch, change):
    monkeypatch.setattr(download, "TRIES", 1)
    site.body, site.faults = b"old" * 9999, ["cut"]
    site.etag = "" if change == "no etag" else '"one"'
    with pytest.raises(ConnectionError, match="14999 of 29997 bytes are missing"):
        fetch(site.url, cache=tmp_path)
    assert "net.pkl" not in names(tmp_path)
    site.body, site.faults = BODY, [change] if change == "no range" else []
    site.etag = '"two"' if change == "etag" else site.etag
    assert fetch(site.url, cache=tmp_path).read_bytes() == BODY


def test_killed_between_the_last_byte_and_the_rename(site, tmp_path):
    path = fetch(site.url, cache=tmp_path)
    part = path.rename(path.with_name(f"{path.name}.part"))
    part.with_name(f"{part.name}.tag").write_text(site.etag)
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    assert site.asked == [None, f"bytes={len(BODY)}-"]


def test_refusals_fail_at_once_and_other_faults_after_a_few_tries(site, tmp_path):
    for code, kind in {404: FileNotFoundError, 403: PermissionError, 418: OSError}.items():
        site.faults = [code]
        with pytest.raises(kind, match=f"answered {code}"):
            fetch(site.url, cache=tmp_path)
    assert len(site.asked) == 3
    site.faults = [500] * 99
    with pytest.raises(ConnectionError, match=r"answered 500 .*\(5 tries\): check the network"):
        fetch(site.url, cache=tmp_path)
    assert len(site.asked) == 3 + download.TRIES
    site.server_close()
    with pytest.raises(ConnectionError, match="does not answer"):
        fetch(site.url, cache=tmp_path)


def test_a_wrong_hash_is_an_error_and_nothing_is_kept(site, tmp_path):
    with pytest.raises(ValueError, match=f"has sha256 {HASH}, expected {'0' * 64}"):
        fetch(site.url, "0" * 64, cache=tmp_path)
    assert names(tmp_path) in ([], ["net.pkl.lock"])


def test_offline_uses_only_the_cache(site, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        fetch(site.url, offline=True, cache=tmp_path)
    path = tmp_path / download.cache_name(site.url)
    assert path.parent == tmp_path / "127.0.0.1" / "models"
    assert f"not in the cache ({path}" in str(caught.value) and site.url in str(caught.value)
    fetch(site.url, cache=tmp_path)
    monkeypatch.setenv("ERK_OFFLINE", "1")
    assert fetch(site.url, cache=tmp_path) == path
    assert len(site.asked) == 1
    path.write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="has another sha256"):
        fetch(site.url, HASH, cache=tmp_path)
    monkeypatch.delenv("ERK_OFFLINE")
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY


def test_two_processes_download_once(site, tmp_path):
    site.faults = ["wait"]
    program = "import sys; from erk.io.download import fetch; print(fetch(*sys.argv[1:]))"
    command = [sys.executable, "-c", program, site.url, HASH, "", str(tmp_path)]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    one, two = (process.communicate(timeout=60)[0].strip() for process in both)
    assert one == two and sha256_of(one) == HASH
    assert len(site.asked) == 1


def test_another_process_continues_when_the_first_is_killed(site, tmp_path):
    """The lock of a dead process is released, and its bytes are not downloaded again."""
    site.faults = ["stall"]
    program = "import sys; from erk.io.download import fetch; print(fetch(*sys.argv[1:]))"
    command = [sys.executable, "-c", program, site.url, HASH, "", str(tmp_path)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    part = tmp_path / f"{download.cache_name(site.url)}.part"
    for _ in range(6000):
        if part.exists() and part.stat().st_size > 200_000:
            break
        time.sleep(0.01)
    held = part.stat().st_size
    first.kill()
    first.communicate()
    assert fetch(site.url, HASH, cache=tmp_path).read_bytes() == BODY
    assert held > 200_000 and site.asked == [None, f"bytes={held}-"]


def test_a_disk_that_is_full(site, small_disk):
    subprocess.run(["mount", "-o", "remount,size=512k", str(small_disk)], check=True)
    with pytest.raises(OSError, match="No space left.*free space, or set ERK_CACHE"):
        fetch(site.url, HASH, cache=small_disk)
    assert "net.pkl" not in names(small_disk)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert fetch(site.url, HASH, cache=small_disk).read_bytes() == BODY
    assert site.asked[1] is not None  # it continues where the disk was full


def test_a_cache_that_can_only_be_read(site, small_disk):
    """Cached files are used; a missing one is an error that says so."""
    site.body = BODY[:1000]
    path = fetch(site.url, cache=small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert fetch(site.url, cache=small_disk) == path and len(site.asked) == 1
    with pytest.raises(OSError, match="Read-only file system.*set ERK_CACHE to another folder"):
        fetch(site.url.replace("models", "others"), cache=small_disk)


def test_a_cache_one_cannot_write_to(site, tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # a path below it, as permissions would not stop root
    with pytest.raises(OSError, match="cannot fetch .* set ERK_CACHE to another folder"):
        fetch(site.url, cache=tmp_path / "file" / "cache")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("os.fsync", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left.*free space"):
        fetch(site.url, cache=tmp_path)


def test_local_paths(tmp_path):
    path = tmp_path / "a#b.pkl"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        fetch(path)
    path.write_bytes(BODY)
    assert fetch(path, HASH) == path == fetch(str(path), offline=True)
    with pytest.raises(ValueError, match="expected"):
        fetch(path, "0" * 64)
    assert path.exists()


@pytest.mark.parametrize("url", ["https://h:99999/x.pkl", "https://[::1/x.pkl"])
def test_addresses_that_python_cannot_split(url, tmp_path):
    with pytest.raises(ValueError, match=f"the address {re.escape(url)} is wrong .*: correct it"):
        fetch(url, cache=tmp_path)


def test_malformed_sources(tmp_path):
    web = ["http:///file", "https://host", "http://host/../../etc/passwd", "http://host:port/file"]
    for source in [*web, "ftp://host/file", "hf://owner/repo", "hf://file", "hf://o/r/@main"]:
        with pytest.raises(ValueError):
            fetch(source, cache=tmp_path)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        fetch("hf://owner/repo/file", "abc", cache=tmp_path)
    assert names(tmp_path) == []


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("ERK_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_dir() == tmp_path / "erk-guid"
    monkeypatch.setenv("ERK_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"


def test_importing_it_loads_no_other_package():
    heavy = "{'requests', 'filelock', 'huggingface_hub', 'tqdm', 'torch'}"
    program = f"import sys, erk.io.download; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0

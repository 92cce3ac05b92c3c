"""From the name of a file to a file on this disk: a path, http(s):// or hf://, kept in a cache.

A cached file appears under its own name only when it is whole and its hash, where known, is right.
Beside it: `.part`, `.part.tag` (unfinished, and of which version), `.lock` (others wait here),
`.sha256` (the hash of what came, by which erk doctor finds out whether the disk kept it).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from erk.io.atomic import publish, write_file

if TYPE_CHECKING:
    from requests import Response

TRIES = 5  # without a single new byte
PAUSE = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = (10, 60)  # seconds to connect, seconds between two bytes
LARGE = 20_000_000  # bytes from which on a download shows how far it is


class _TryAgainError(Exception): ...  # another try may succeed


def fetch(
    source: str | os.PathLike[str],
    sha256: str | None = None,
    offline: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """The local file that `source` names, downloaded into the cache if it is not there yet.

    source: a path (returned as it is), http://…, https://… or hf://owner/repo/path[@revision].
    sha256: the file's hash in hexadecimal; a file with another one is never returned.
    offline: look into the cache only; so does the environment variable ERK_OFFLINE=1.
    cache: the cache folder; None: that of `cache_dir`.
    Raises an OSError (FileNotFoundError, PermissionError, ConnectionError) that says what to do
    when the file cannot be had, ValueError for a malformed source or a wrong hash.
    """
    source, root = os.fspath(source), Path(cache) if cache is not None else cache_dir()
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256 := sha256.lower()):
        raise ValueError(f"a sha256 has 64 hexadecimal digits, {sha256!r} is none: correct it")
    offline = is_offline(offline)
    scheme = source.partition("://")[0] if "://" in source else "path"
    get = {"path": _from_disk, "http": _from_web, "https": _from_web, "hf": _from_hub}.get(scheme)
    if get is None:
        raise ValueError(f"cannot fetch {source}: give a path, http://, https:// or hf://")
    try:
        return get(source, sha256, offline, root)
    except OSError as error:
        if error.errno is None:  # a sentence of this file; else the system's word on a file
            raise
        advice = "check the rights and the free space there, or name another cache by ERK_CACHE"
        raise type(error)(f"cannot fetch {_shown(source)} ({error}): {advice}") from None


def is_offline(asked: bool = False) -> bool:
    """Whether downloads are forbidden: by the caller, or by ERK_OFFLINE=1."""
    return asked or os.environ.get("ERK_OFFLINE", "0") not in ("", "0")


def cache_dir() -> Path:
    """The cache folder: ERK_CACHE, else "erk-guid" in the platform's own."""
    windows = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    linux = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = {"win32": windows, "darwin": "~/Library/Caches"}.get(sys.platform, linux)
    return Path(os.environ.get("ERK_CACHE") or f"{base}/erk-guid").expanduser()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits; read in pieces. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_record(path: Path) -> Path:
    """The file beside a cached one that holds its sha256."""
    return _beside(path, ".sha256")


def _from_disk(source: str, sha256: str | None, offline: bool, root: Path) -> Path:
    if not os.path.exists(source):
        raise FileNotFoundError(f"there is no file {source}: check the path")
    _check_hash(Path(source), sha256, source)
    return Path(source)


def _from_web(url: str, sha256: str | None, offline: bool, root: Path) -> Path:
    target = root / _cache_name(url)
    if _is_right(target, sha256):
        return target
    if offline:
        raise _not_cached(_shown(url), target)
    from filelock import FileLock, Timeout  # late: a tenth of a second

    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(target, ".lock"))  # the system lifts it when its holder dies
    try:
        lock.acquire(timeout=2)
    except Timeout:
        if os.environ.get("RANK", "0") == "0":
            print(f"waiting for another process that downloads {target.name}", file=sys.stderr)
        lock.acquire()
    try:
        if not _is_right(target, sha256):  # another process may have been quicker
            _download(url, target, sha256)
    finally:
        lock.release()
    return target


def _cache_name(url: str) -> Path:
    """host/folders/file; of a query, the file's name gets eight digits of the hash."""
    parts = urlsplit(url)
    names = [name for name in parts.path.split("/") if name]
    if not parts.hostname or not names or {".", ".."} & set(names):
        raise ValueError(f"the address {_shown(url)} names no file: give http(s)://host/path/file")
    if parts.query:
        last, digest = Path(names[-1]), hashlib.sha256(parts.query.encode()).hexdigest()[:8]
        names[-1] = f"{last.stem}-{digest}{last.suffix}"
    host = parts.hostname + (f"_{parts.port}" if parts.port else "")
    return Path(*(re.sub(r"[^\w.%+=@~-]", "_", name) for name in (host, *names)))


def _shown(url: str) -> str:
    """A URL without its user, password and query: they may be secrets."""
    return re.sub(r"(://[^?#]*).*", r"\1", re.sub(r"://[^/?#]*@", "://", url))


def _download(url: str, target: Path, sha256: str | None) -> None:
    part = _beside(target, ".part")
    tries, best = 0, _size(part)
    while True:
        try:
            _transfer(url, part)
            break
        except _TryAgainError as error:
            tries = tries + 1 if _size(part) <= best else 1
            best = max(best, _size(part))
            if tries == TRIES:
                advice = f"check the network, then run it again, or put the file at {target}"
                raise ConnectionError(f"{error} ({TRIES} tries): {advice}") from None
        time.sleep(PAUSE * 2 ** (tries - 1))
    _check_hash(part, sha256, _shown(url), remove=(part, _beside(part, ".tag")))
    write_file(hash_record(target), f"{sha256_of(part)}\n".encode())
    publish(part, target)
    _beside(part, ".tag").unlink(missing_ok=True)


def _transfer(url: str, part: Path) -> None:
    """One try: the rest of the file, or all of it, into `part`. Raises _TryAgainError, OSError."""
    import requests  # late: most runs find the file in the cache

    have, name, headers = _size(part), _shown(url), {"Accept-Encoding": "identity"}
    tag = _beside(part, ".tag")
    if have and tag.exists() and (version := tag.read_text("utf-8")):
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
            _check_way(reply, name)
            start, total = _extent(reply, name, part)
            try:
                if reply.status_code != 416:
                    _write(part, reply, start, total, name)
            except requests.RequestException:
                if total is None:
                    raise
            if total is not None and _size(part) < total:
                lack = f"{total - _size(part)} of {total} bytes are missing"
                raise _TryAgainError(f"{name} broke off: {lack}")
    except ValueError as error:  # what requests says of an address that no one can call
        raise ValueError(f"the address {name} cannot be used: {error}") from None
    except requests.TooManyRedirects:
        raise OSError(f"{name} sends on from address to address: check it") from None
    except requests.RequestException as error:
        raise _TryAgainError(f"{name} does not answer ({type(error).__name__})") from None


def _check_way(reply: Response, name: str) -> None:
    """OSError if an encrypted address sent us on to one that anybody on the way can change."""
    way = [one.url for one in (*reply.history, reply)]
    if any(a.startswith("https:") and b.startswith("http:") for a, b in pairwise(way)):
        raise OSError(f"{name} sends on to an address without encryption: download it by hand")


def _extent(reply: Response, name: str, part: Path) -> tuple[int, int | None]:
    """Where the body of a reply starts in the file, and the file's length in bytes if told."""
    code, length = reply.status_code, reply.headers.get("Content-Length", "")
    message = f"{name} answered {code} {reply.reason or ''}".rstrip()
    if code == 200:
        is_plain = reply.headers.get("Content-Encoding", "identity") == "identity"
        return 0, int(length) if length.isdigit() and is_plain else None
    if code in (206, 416):  # 416: killed after the last byte, if that is what the length says
        told = re.match(r"bytes (\d+|\*)[^/]*/(\d+)", reply.headers.get("Content-Range", ""))
        if told and told[1 if code == 206 else 2] == str(_size(part)):
            return _size(part), int(told[2])
        part.unlink(missing_ok=True)
        raise _TryAgainError(f"{message}, but not with the range that was asked for")
    if code >= 500 or code in (408, 425, 429):
        raise _TryAgainError(f"{message}: the server is busy or out of order")
    if code in (401, 403):
        raise PermissionError(f"{message}: it wants a login; download the file by hand")
    kind = FileNotFoundError if code in (404, 410) else OSError
    raise kind(f"{message}: check the address or download the file by hand")


def _write(part: Path, reply: Response, start: int, total: int | None, name: str) -> None:
    from tqdm import tqdm

    small, pace = total is not None and total < LARGE, 0.5 if sys.stderr.isatty() else 20
    bar = tqdm(None, name, total, initial=start, disable=small, mininterval=pace,
               unit="B", unit_scale=True)
    with open(part, "ab" if start else "wb") as file, bar:
        if not start:  # after the truncation and before the first byte: a tag never lies
            tag = reply.headers.get("ETag", "")  # If-Range takes no weak tag (W/"…")
            version = tag if tag.startswith('"') else reply.headers.get("Last-Modified", "")
            _beside(part, ".tag").write_text(version, "utf-8")
        reply.raw.enforce_content_length = False  # else the last bytes before a break are lost
        for chunk in reply.iter_content(1 << 18):
            bar.update(file.write(chunk))
        file.flush()
        os.fsync(file.fileno())


def hub_files(address: str, offline: bool = False) -> list[str]:
    """Paths of the files in hf://owner/repo[@revision]; where it cannot be asked, of those cached.

    Raises OSError or ValueError as `fetch`.
    """
    if not (found := re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@(.+))?", address)):
        raise ValueError(f"{address} is no repository: give hf://owner/repo[@revision]")
    from huggingface_hub import HfApi, snapshot_download

    (repo, revision), place = found.groups(), cache_dir() / "huggingface"
    offline, told = is_offline(offline), None
    try:
        if not offline:
            files = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT[0]).siblings
            return sorted(file.rfilename for file in files or ())
    except Exception as error:
        told = error
    try:
        folder = Path(snapshot_download(repo, revision=revision, cache_dir=place,
                                        local_files_only=True))  # fmt: skip
    except Exception as error:
        raise _hub_error(told or error, address, offline, place) from None
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _from_hub(source: str, sha256: str | None, offline: bool, root: Path) -> Path:
    if not (found := re.fullmatch(r"hf://([^/@]+/[^/@]+)/([^@]+)(?:@(.+))?", source)):
        raise ValueError(f"cannot fetch {source}: give hf://owner/repo/path[@revision]")
    from huggingface_hub import hf_hub_download

    (repo, file, revision), place = found.groups(), root / "huggingface"
    try:
        path = Path(hf_hub_download(repo, file, revision=revision, cache_dir=place,
                                    local_files_only=offline))
    except Exception as error:
        raise _hub_error(error, source, offline, place) from None
    _check_hash(path, sha256, source, remove=(path.resolve(), path))  # bytes and the link to them
    return path


def _hub_error(error: Exception, source: str, offline: bool, place: Path) -> Exception:
    """What to raise: the hub's classes come from several libraries, without a common ancestor."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if offline:
        return _not_cached(source, place)
    name = type(error).__name__
    kind = OSError if name.startswith("Local") or "EntryNotFound" not in name else FileNotFoundError
    advice = "check its name, the network and, if it wants a login, `hf auth login`"
    return kind(f"{source} cannot be had ({name}): {advice}")


def _not_cached(source: str, place: Path) -> FileNotFoundError:
    state = "has another sha256" if place.is_file() else "is not there"
    advice = "fetch it once without --offline and without ERK_OFFLINE"
    return FileNotFoundError(f"{source} is not in the cache ({place} {state}): {advice}")


def _is_right(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or sha256_of(path) == sha256)


def _check_hash(path: Path, sha256: str | None, name: str, remove: tuple[Path, ...] = ()) -> None:
    if sha256 is not None and (got := sha256_of(path)) != sha256:
        for bad in remove:
            bad.unlink(missing_ok=True)
        raise ValueError(f"{name} has sha256 {got}, expected {sha256}: fetch it anew or correct it")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

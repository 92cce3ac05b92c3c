"""Downloads into a cache: http(s):// with resume, hf:// through huggingface_hub.

A cached file appears under its name only when it is complete and its hash, if known, matches.
Files beside it: `.part` and `.part.tag` (an unfinished download and its version), `.lock` (other
processes wait for it), `.sha256` (the hash of the downloaded bytes, which erk doctor compares).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from erk.io.addresses import cache_name, shown
from erk.io.atomic import publish, sync, write_file
from erk.io.files import sha256_of

if TYPE_CHECKING:
    from requests import Response

    from erk.io.connection import BoundedSession

TRIES = 5  # with fewer new bytes than MIN_RATE asks of a minute
UNREACHED = 2  # tries where no server was reached and nothing is downloaded yet
PAUSE = 1.0  # seconds before the second try, doubled before each further try
TIMEOUT = (10, 60)  # seconds to connect, seconds between two bytes; see also WINDOW
LARGE = 20_000_000  # bytes; larger downloads show a progress bar
LARGEST = 20 << 30  # bytes of a file whose length the server does not declare
MIN_RATE, WINDOW = 1000, 60.0  # bytes per second, and the seconds over which they are counted


class _TryAgainError(Exception): ...  # another try may succeed


class _UnreachableError(_TryAgainError): ...  # an unknown host, no connection, or none in time


def fetch(
    source: str | os.PathLike[str],
    sha256: str | None = None,
    offline: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the local path of a file, downloading it into the cache if missing.

    Parameters
    ----------
    source
        A path (returned unchanged), http://…, https://… or hf://owner/repo/path[@revision].
    sha256
        Expected hash in hexadecimal; a file with another hash is never returned.
    offline
        Use the cache only, as with the environment variable ERK_OFFLINE=1.
    cache
        The cache folder; None: `cache_dir`.

    Raises
    ------
    OSError, ValueError
        If the file is unavailable; for a malformed source or a wrong hash.
    """
    source, root = os.fspath(source), Path(cache) if cache is not None else cache_dir()
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256 := sha256.lower()):
        raise ValueError(f"a sha256 has 64 hexadecimal digits, unlike {sha256!r}: correct it")
    offline = is_offline(offline)
    scheme = source.partition("://")[0] if "://" in source else "path"
    get = {"path": _from_disk, "http": _from_web, "https": _from_web, "hf": _from_hub}.get(scheme)
    if get is None:
        raise ValueError(f"cannot fetch {source}: give a path, http://, https:// or hf://")
    try:
        return get(source, sha256, offline, root)
    except OSError as error:
        if error.errno is None:  # raised here; errors with a number are the system's
            raise
        advice = "check permissions and free space, or set ERK_CACHE to another folder"
        raise type(error)(f"cannot fetch {shown(source)} ({error}): {advice}") from None


def is_offline(asked: bool = False) -> bool:
    """Return whether downloads are disabled, by the caller or by ERK_OFFLINE=1."""
    return asked or os.environ.get("ERK_OFFLINE", "0") not in ("", "0")


def cache_dir() -> Path:
    """Return the cache folder: ERK_CACHE, else "erk-guid" in the user's cache directory.

    Raises ValueError for the home folder of a user who does not exist.
    """
    default = user_cache_path("erk-guid", appauthor=False, opinion=False)
    chosen = Path(os.environ.get("ERK_CACHE") or default)
    try:
        return chosen.expanduser()
    except RuntimeError as error:
        raise ValueError(f"ERK_CACHE={chosen} is no folder: {error}") from error


def hash_record(path: Path) -> Path:
    """Return the path that stores the sha256 of a cached file."""
    return _beside(path, ".sha256")


def _from_disk(source: str, sha256: str | None, offline: bool, root: Path) -> Path:
    if not os.path.exists(source):
        raise FileNotFoundError(f"there is no file {source}: check the path")
    _check_hash(Path(source), sha256, source)
    return Path(source)


def _from_web(url: str, sha256: str | None, offline: bool, root: Path) -> Path:
    target = root / cache_name(url)
    if _is_right(target, sha256):
        return target
    if offline:
        raise _not_cached(shown(url), target)
    from filelock import FileLock, Timeout  # late: a tenth of a second

    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(target, ".lock"))  # released by the system when its process dies
    try:
        lock.acquire(timeout=2)
    except Timeout:
        if os.environ.get("RANK", "0") == "0":
            text = f"waiting for another process to download {target.name}; its lock: "
            print(f"{text}{lock.lock_file}, which you may delete if there is none", file=sys.stderr)
        lock.acquire()
    try:
        if not _is_right(target, sha256):  # another process may have finished it
            _download(url, target, sha256)
    finally:
        lock.release()
    return target


def _download(url: str, target: Path, sha256: str | None) -> None:
    part = _beside(target, ".part")
    tries, limit, best = 0, UNREACHED, _size(part)
    while True:
        try:
            _transfer(url, part)
            break
        except _TryAgainError as error:
            if best or not isinstance(error, _UnreachableError):
                limit = TRIES
            tries = tries + 1 if _size(part) - best < MIN_RATE * WINDOW else 1
            best = max(best, _size(part))
            if tries == limit:
                advice = f"check the network and run the command again, or put the file at {target}"
                raise ConnectionError(f"{error} ({limit} tries): {advice}") from None
            pause = PAUSE * 2 ** (tries - 1)
            if os.environ.get("RANK", "0") == "0":
                print(f"{error}; trying again in {pause:g} s ({tries} of {limit})", file=sys.stderr)
        time.sleep(pause)
    _check_hash(part, sha256, shown(url), remove=(part, _beside(part, ".tag")))
    write_file(hash_record(target), f"{sha256_of(part)}\n".encode())
    publish(part, target)
    _beside(part, ".tag").unlink(missing_ok=True)


def _transfer(url: str, part: Path) -> None:
    """Download the rest of the file into `part`, once. Raises _TryAgainError, OSError."""
    import requests  # late: most runs find the file in the cache
    from urllib3.exceptions import HTTPError

    from erk.io.connection import BoundedSession, SlowError, is_unreachable

    have, name, headers = _size(part), shown(url), {"Accept-Encoding": "identity"}
    tag = _beside(part, ".tag")
    version, length = _version(tag)
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with (
            BoundedSession(WINDOW, MIN_RATE * WINDOW) as session,
            session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply,
        ):
            _check_redirects(reply, name)
            start, total = _extent(reply, name, part)
            is_same = _tag(reply) in ("", version) and length in ("", str(total))
            if reply.status_code == 206 and not is_same:
                part.unlink(missing_ok=True)
                raise _TryAgainError(f"{name} is another version than the part that was downloaded")
            try:
                if reply.status_code != 416:
                    _write(part, reply, (start, total), name, session)
            except (requests.RequestException, HTTPError):
                if total is None:
                    raise
            if total is not None and _size(part) < total:
                missing = f"{total - _size(part)} of {total} bytes are missing"
                raise _TryAgainError(f"{name} was interrupted: {missing}")
    except SlowError as error:
        if not error.received:  # a connection that hangs: another one may not
            raise _TryAgainError(f"{name} does not answer within {WINDOW:g} s") from None
        raise OSError(
            f"{name} sends less than {MIN_RATE} bytes per second: run the command again to go on, "
            "or download the file manually"
        ) from None
    except ValueError:  # requests rejects the address; its message shows the query
        raise ValueError(f"the address {name} cannot be used: correct it") from None
    except requests.TooManyRedirects:
        raise OSError(f"{name} redirects in circles: check the address") from None
    except (requests.RequestException, HTTPError) as error:
        kind = _UnreachableError if is_unreachable(error) else _TryAgainError
        raise kind(f"{name} does not answer ({type(error).__name__})") from None


def _check_redirects(reply: Response, name: str) -> None:
    """Raise OSError if an https address redirected to http, which a third party could alter."""
    urls = [one.url for one in (*reply.history, reply)]
    if any(a.startswith("https:") and b.startswith("http:") for a, b in pairwise(urls)):
        raise OSError(f"{name} redirects to an unencrypted address: download the file manually")


def _extent(reply: Response, name: str, part: Path) -> tuple[int, int | None]:
    """Return the reply's offset in the file and the file's length if known, in bytes."""
    code, length = reply.status_code, reply.headers.get("Content-Length", "")
    message = f"{name} answered {code} {reply.reason or ''}".rstrip()
    encoding = reply.headers.get("Content-Encoding", "identity")
    if code in (200, 206) and encoding != "identity":  # could unpack to any size
        raise OSError(f"{name} is sent as {encoding[:40]}: download the file manually")
    if code == 200:
        return 0, int(length) if length.isdigit() else None
    if code in (206, 416):  # 416: all bytes were there already, if the length agrees
        match = re.match(r"bytes (\d+|\*)[^/]*/(\d+)", reply.headers.get("Content-Range", ""))
        if match and match[1 if code == 206 else 2] == str(_size(part)):
            return _size(part), int(match[2])
        part.unlink(missing_ok=True)
        raise _TryAgainError(f"{message}, but not with the requested range")
    if code >= 500 or code in (408, 425, 429):
        raise _TryAgainError(f"{message}: the server is busy or broken")
    if code in (401, 403):
        raise PermissionError(f"{message}: a login is required; download the file manually")
    kind = FileNotFoundError if code in (404, 410) else OSError
    raise kind(f"{message}: check the address or download the file manually")


def _write(
    part: Path, reply: Response, extent: tuple[int, int | None], name: str, session: BoundedSession
) -> None:
    from tqdm import tqdm

    start, total = extent
    bar = tqdm(
        desc=name, total=total, initial=start, unit="B", unit_scale=True,
        disable=total is not None and total < LARGE,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )  # fmt: skip
    with open(part, "ab" if start else "wb") as file, bar:
        if not start:  # after truncation and before the first byte, so the tag is never wrong
            length = "" if total is None else str(total)
            _beside(part, ".tag").write_text(f"{_tag(reply)}\n{length}", "utf-8")
        reply.raw.enforce_content_length = False  # else bytes before an interruption are lost
        try:
            for chunk in _chunks(reply, session):
                if total is None and file.tell() + len(chunk) > LARGEST:
                    raise OSError(f"{name} has more than {LARGEST >> 30} GiB: download it manually")
                bar.update(file.write(chunk))
        finally:
            sync(file)


def _chunks(reply: Response, session: BoundedSession) -> Iterator[bytes]:
    """Yield the bytes as they arrive."""
    read = getattr(reply.raw, "read1", reply.raw.read)  # read1 does not wait for all bytes
    while chunk := read(1 << 18, decode_content=False):
        session.received(len(chunk))
        yield chunk
    session.finish()


def _tag(reply: Response) -> str:
    """Return the version of a file, for If-Range, which needs a strong tag (not W/"...")."""
    tag = reply.headers.get("ETag", "")
    return tag if tag.startswith('"') else reply.headers.get("Last-Modified", "")


def _version(tag: Path) -> tuple[str, str]:
    """Return the version of an unfinished download and its length; "" where unknown."""
    version, _, length = (tag.read_text("utf-8") if tag.exists() else "").partition("\n")
    return version, length


def hub_files(address: str, offline: bool = False) -> list[str]:
    """List the files in hf://owner/repo[@revision]; without a connection, the cached ones.

    Raises OSError or ValueError as `fetch`.
    """
    if not (match := re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@(.+))?", address)):
        raise ValueError(f"{address} is not a repository: give hf://owner/repo[@revision]")
    from huggingface_hub import HfApi, snapshot_download

    (repo, revision), cache = match.groups(), cache_dir() / "huggingface"
    offline, failure = is_offline(offline), None
    try:
        if not offline:
            files = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT[0]).siblings
            return sorted(file.rfilename for file in files or ())
    except Exception as error:
        failure = error
    try:
        snapshot = snapshot_download(
            repo, revision=revision, cache_dir=cache, local_files_only=True
        )
    except Exception as error:
        raise _hub_error(failure or error, address, offline, cache) from None
    folder = Path(snapshot)
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _from_hub(source: str, sha256: str | None, offline: bool, root: Path) -> Path:
    if not (match := re.fullmatch(r"hf://([^/@]+/[^/@]+)/([^@]+)(?:@(.+))?", source)):
        raise ValueError(f"cannot fetch {source}: give hf://owner/repo/path[@revision]")
    from huggingface_hub import hf_hub_download

    (repo, file, revision), cache = match.groups(), root / "huggingface"
    try:
        path = Path(
            hf_hub_download(
                repo, file, revision=revision, cache_dir=cache, local_files_only=offline
            )
        )
    except Exception as error:
        raise _hub_error(error, source, offline, cache) from None
    _check_hash(path, sha256, source, remove=(path.resolve(), path))  # the blob and its link
    return path


def _hub_error(error: Exception, source: str, offline: bool, cache: Path) -> Exception:
    """Convert an error of huggingface_hub, whose classes have no common ancestor."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if offline:
        return _not_cached(source, cache)
    name = type(error).__name__
    kind = OSError if name.startswith("Local") or "EntryNotFound" not in name else FileNotFoundError
    advice = "check its name, the network and, if it wants a login, `hf auth login`"
    return kind(f"{source} cannot be downloaded ({name}): {advice}")


def _not_cached(source: str, path: Path) -> FileNotFoundError:
    state = "has another sha256" if path.is_file() else "is missing"
    advice = "download it once without --offline and ERK_OFFLINE, or copy it to that path"
    return FileNotFoundError(f"{source} is not in the cache ({path} {state}): {advice}")


def _is_right(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or sha256_of(path) == sha256)


def _check_hash(path: Path, sha256: str | None, name: str, remove: tuple[Path, ...] = ()) -> None:
    if sha256 is not None and (got := sha256_of(path)) != sha256:
        for bad in remove:
            bad.unlink(missing_ok=True)
        raise ValueError(f"{name} has sha256 {got}, expected {sha256}: download it again")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

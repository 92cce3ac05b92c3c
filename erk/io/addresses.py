"""Addresses of files on the web: their path in the cache, and what a message shows of them."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

SECRET = re.compile(r"(?i)token|sig|expires|key|credential|policy|auth|x-(amz|goog)-")
DIGEST = 32  # hexadecimal digits


def cache_name(url: str) -> Path:
    """Return host/folders/file; every address has another path.

    Addresses that such a path does not show (http, queries, unusual characters) add digits of their
    hash to the file name. Parameters of the query that are secrets, such as tokens, do not count.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:  # a port beyond 65535, a bracket without a partner
        raise ValueError(f"the address {shown(url)} is wrong ({error}): correct it") from None
    names = [name for name in parts.path.split("/") if name]
    host = parts.hostname or ""
    if not re.fullmatch(r"[\w-][\w.-]*|[0-9a-f:]+", host) or not names or {".", ".."} & set(names):
        raise ValueError(f"the address {shown(url)} names no file: give http(s)://host/path/file")
    public = [one for one in parts.query.split("&") if not SECRET.search(one.partition("=")[0])]
    query = "&".join(public)
    start, end = f"{parts.scheme}://{host}{port}", f"?{query}" if query else ""
    path = Path(*(re.sub(r"[^\w.%+=@~-]", "_", name) for name in (host, *names)))
    looks_hashed = re.search(f"-[0-9a-f]{{{DIGEST}}}$", path.stem)
    if f"https://{path.as_posix()}" == start + parts.path + end and not looks_hashed:
        return path
    full = parts.path
    if Path(names[-1]).suffix == path.suffix:  # the name has it: NAME.json is beside its network
        full = full.removesuffix(path.suffix)
    digest = hashlib.sha256(f"{start}{full}{end}".encode()).hexdigest()[:DIGEST]
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")


def shown(url: str) -> str:
    """Return a URL without user, password and query, which may be secrets."""
    return re.sub(r"(://[^?#]*).*", r"\1", re.sub(r"://[^/?#]*@", "://", url))

"""Results on disk, keyed by what they depend on and by the version of their computation.

A key holds settings and content hashes (of networks, references, images), never a hash of source
files: the author of a computation raises its version when its numbers change. An entry is a file
`DIGEST.SUFFIX`, so processes, shards and restarts share a folder without communication.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from erk.io.atomic import write_file

T = TypeVar("T")


def digest(key: Any, version: int) -> str:
    """Return 64 hexadecimal digits that identify a JSON-serializable key and a version.

    The order of the keys of a dictionary does not matter; tuples equal lists. Raises TypeError for
    values that JSON cannot hold and ValueError for NaN and infinities.
    """
    text = json.dumps([version, key], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cached_path(key: Any, version: int, folder: Path, suffix: str = ".json") -> Path:
    """Return the file of an entry, whether or not it exists. Raises as `digest`."""
    return folder / f"{digest(key, version)}{suffix}"


def load_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError or ValueError."""
    return json.loads(path.read_bytes())


def save_json(value: Any) -> bytes:
    """Encode a value as indented JSON. Raises TypeError or ValueError."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def find(
    key: Any,
    version: int,
    folder: Path,
    load: Callable[[Path], Any] = load_json,
    suffix: str = ".json",
) -> Any:
    """Return a cached value. Raises FileNotFoundError where it is missing or damaged."""
    path = cached_path(key, version, folder, suffix)
    try:
        return load(path)
    except MemoryError:
        raise
    except Exception as error:  # each file format raises its own classes for damaged files
        raise FileNotFoundError(f"{path} is missing or damaged: compute it again") from error


def cached(
    key: Any,
    version: int,
    make: Callable[[], T],
    folder: Path,
    *,
    load: Callable[[Path], T] = load_json,
    save: Callable[[T], bytes] = save_json,
    suffix: str = ".json",
) -> T:
    """Return a stored value, or compute and store it.

    Several processes may compute the same entry at the same time: each writes it atomically and
    the last one wins. A damaged entry is computed again.

    Parameters
    ----------
    key
        All that the value depends on, as JSON: settings and content hashes.
    version
        Version of the computation; raise it when the numbers change.
    make
        Computes the value.
    folder
        Folder of the entries; created if missing.
    load, save
        Read the value from a path, and encode it as bytes. JSON by default; tensors:
        `safetensors.torch.load_file` and `save`; bytes: `Path.read_bytes` and `bytes`.
    suffix
        End of the file's name.

    Returns
    -------
    T
        The value as `load` reads it, on the first call too.

    Raises
    ------
    OSError
        If the entry cannot be written.
    TypeError, ValueError
        For a key that is not JSON.
    """
    try:
        return find(key, version, folder, load, suffix)
    except FileNotFoundError:
        value = make()
    path = cached_path(key, version, folder, suffix)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, save(value))
    return load(path)

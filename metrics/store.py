"""Features on disk, one file per chunk of images and extractor: nothing is extracted twice.

Files are written atomically, and a file's name holds the hash of its images and of the weights,
so that processes, shards and restarts share one folder without communication.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erk.io.atomic import draft_target, uninterrupted, write_file
from erk.io.download import cache_dir
from erk.io.files import check_regular
from metrics.extractors import Extractor

DAY = 86400  # seconds
VERSION = 1  # raise it when an extractor's preprocessing or layers change: old features are void


def default_folder() -> Path:
    """Return the default store: "features" in the cache folder."""
    return cache_dir() / "features"


def save(folder: Path, extractor: Extractor, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Store the tensors of one chunk, together with known others of the same images."""
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path = chunk_path(folder, extractor, key)
    _write(path, _merged(path, content))


def load(folder: Path, extractor: Extractor, key: str) -> dict[str, Tensor]:
    """Load the tensors of one chunk. Raises FileNotFoundError if they are missing."""
    path = chunk_path(folder, extractor, key)
    try:
        with suppress(PermissionError):  # a cache that only others may write
            os.utime(path)  # trim keeps the files used last
        return _read(path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"the features in {path} are missing: every process needs the same folder, "
            "name one that all of them see by --cache"
        ) from error


def add_file(path: Path, target: Path) -> bool:
    """Add a file of another store to this one; return whether it held anything new.

    Raises ValueError for a file that cannot be read.
    """
    try:
        content = _read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable: delete it and extract it again") from error
    with suppress(OSError, ValueError):
        stored = _read(target)
        if torch.equal(stored["kept"], content["kept"]) and content.keys() <= stored.keys():
            return False
        del stored  # Windows replaces no file that is still mapped
    _write(target, _merged(target, content))
    return True


def _write(path: Path, content: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with uninterrupted():
        write_file(path, safetensors.torch.save(content))


def _merged(path: Path, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the tensors that a file holds of the same images."""
    with suppress(OSError, ValueError):
        stored = _read(path)
        if torch.equal(stored["kept"], content["kept"]):
            return stored | content
    return content


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file: ``kept`` int64 [n], positions of the images, and tensors of n rows.

    Raises OSError, or ValueError for a file that is damaged or was not written by `save`.
    """
    check_regular(path)
    try:
        content = safetensors.torch.load_file(path)
    except OSError:
        raise
    except Exception as error:  # classes of safetensors' own, and torch's for odd types
        raise ValueError(f"{path} is not readable") from error
    kept = content.get("kept")
    if kept is None or kept.dtype != torch.int64 or kept.ndim != 1:
        raise ValueError(f"{path} does not list its images")
    if any(one.ndim == 0 or len(one) != len(kept) for one in content.values()):
        raise ValueError(f"{path} does not hold a row of each image")
    return content


def files_of(folder: Path) -> list[Path]:
    """List all files of features in a store."""
    return sorted(filter(_is_chunk, folder.glob("*/??/*.safetensors")))


def holds(
    folder: Path, extractor: Extractor, key: str, wanted: Sequence[str], rows: int | None = None
) -> bool:
    """Return whether the wanted tensors of a chunk are stored, of at least ``rows`` images."""
    path = chunk_path(folder, extractor, key)
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            known, (n,) = set(file.keys()), file.get_slice("kept").get_shape()
    except (OSError, SafetensorError, ValueError):  # missing, or cut by a full disk
        return False
    if rows is not None and n < rows:
        return False
    return n == 0 or known >= {*wanted}  # a chunk without a readable image has no features


def chunk_path(folder: Path, extractor: Extractor, key: str) -> Path:
    """Return the file of one chunk. Raises ValueError for an extractor of unknown weights."""
    if not extractor.sha256:
        raise ValueError(
            f"features of {extractor.name} cannot be stored, its sha256 is empty: give the hash of "
            "its weights, or images in memory without a cache"
        )
    weights = re.sub(r"\W", "-", extractor.sha256)[:32]
    suffix = "" if extractor.precision == "fp32" else f"-{extractor.precision}"
    network = f"{extractor.name}-{VERSION}-{weights}{suffix}"
    return folder / network / key[:2] / f"{key}.safetensors"


def _is_chunk(path: Path) -> bool:
    """Return whether a path has the form of `chunk_path`: the folder may hold other files."""
    return re.fullmatch("[0-9a-f]{64}", path.stem) is not None and path.stem[:2] == path.parent.name


def trim(folder: Path, limit: int) -> int:
    """Remove the least recently used files beyond ``limit`` bytes; return the bytes freed.

    Drafts of killed processes are removed when a day old: younger ones may be in use.
    """
    for draft in folder.glob("*/??/.*.tmp"):
        with suppress(OSError):
            if _is_old_draft(draft):
                draft.unlink()
    files = []
    for path in files_of(folder):
        with suppress(OSError):  # another process may have removed it
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    freed = 0
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if freed >= excess:
            break
        with suppress(OSError):  # Windows removes no file that is in use
            path.unlink(missing_ok=True)
            freed += size
    return freed


def _is_old_draft(draft: Path) -> bool:
    is_chunk = re.fullmatch(r"[0-9a-f]{64}\.safetensors", draft_target(draft) or "")
    return is_chunk is not None and time.time() - draft.stat().st_mtime > DAY

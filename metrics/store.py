"""Features on disk, a file per chunk of images and extractor: nothing is extracted twice.

A file appears whole or not at all, and its name says what it holds, so that processes, shards and
restarts share one folder without speaking to each other.
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

from erk.io.atomic import draft_target
from erk.io.download import cache_dir
from metrics.extractors import Extractor
from metrics.table import write

DAY = 86400  # seconds
VERSION = 1  # raise it when an extractor's preprocessing or layers change: old features are void


def default_folder() -> Path:
    """Where features are kept unless another place is named: "features" in the cache."""
    return cache_dir() / "features"


def save(folder: Path, extractor: Extractor, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep the tensors of one chunk, beside others of the same images that are there already."""
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path = place(folder, extractor, key)
    write(path, safetensors.torch.save(_beside_others(path, content)))


def load(folder: Path, extractor: Extractor, key: str) -> dict[str, Tensor]:
    """The tensors of one chunk. Raises FileNotFoundError if they are not there."""
    path = place(folder, extractor, key)
    try:
        with suppress(PermissionError):  # a cache that only others may write
            os.utime(path)  # trim spares what was used last
        return _read(path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"the features in {path} are not there: every process needs the same folder, "
            "name one that all of them see by --cache"
        ) from error


def add_file(path: Path, target: Path) -> bool:
    """Add a file of another store to this one; whether it held anything new. Raises ValueError."""
    try:
        content = _read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable: delete it and make it anew") from error
    with suppress(OSError, ValueError):
        there = _read(target)
        if torch.equal(there["kept"], content["kept"]) and content.keys() <= there.keys():
            return False
        del there  # Windows replaces no file that is still mapped
    write(target, safetensors.torch.save(_beside_others(target, content)))
    return True


def _beside_others(path: Path, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with those that a file holds of the same images."""
    with suppress(OSError, ValueError):
        there = _read(path)
        if torch.equal(there["kept"], content["kept"]):
            return there | content
    return content


def _read(path: Path) -> dict[str, Tensor]:
    """What a file holds: ``kept`` [n], and of each image a row in all others.

    Raises OSError, or ValueError for a file that is damaged or was not written by `save`.
    """
    try:
        content = safetensors.torch.load_file(path)
    except OSError:
        raise
    except Exception as error:  # classes of safetensors' own, and torch's for odd types
        raise ValueError(f"{path} is not readable") from error
    kept = content.get("kept")
    if kept is None or kept.dtype != torch.int64 or kept.ndim != 1:
        raise ValueError(f"{path} does not tell its images")
    if any(one.ndim == 0 or len(one) != len(kept) for one in content.values()):
        raise ValueError(f"{path} does not hold a row of each image")
    return content


def files_of(folder: Path) -> list[Path]:
    """All files of features in a store."""
    return sorted(filter(_is_ours, folder.glob("*/??/*.safetensors")))


def holds(
    folder: Path, extractor: Extractor, key: str, wanted: Sequence[str], rows: int | None = None
) -> bool:
    """Whether the wanted tensors of a chunk are there, and of at least ``rows`` images."""
    try:
        with safe_open(place(folder, extractor, key), "pt") as file:
            known, (n,) = set(file.keys()), file.get_slice("kept").get_shape()
    except (OSError, SafetensorError, ValueError):  # not there, or cut by a full disk
        return False
    if rows is not None and n < rows:
        return False
    return n == 0 or known >= {*wanted}  # of a chunk without a readable image there is nothing


def place(folder: Path, extractor: Extractor, key: str) -> Path:
    """The file of one chunk."""
    weights = re.sub(r"\W", "-", extractor.sha256)[:32]
    how = "" if extractor.precision == "fp32" else f"-{extractor.precision}"
    return folder / f"{extractor.name}-{VERSION}-{weights}{how}" / key[:2] / f"{key}.safetensors"


def _is_ours(path: Path) -> bool:
    """Whether a path has the form of `place`: a cache may be a folder that holds other files."""
    return re.fullmatch("[0-9a-f]{64}", path.stem) is not None and path.stem[:2] == path.parent.name


def trim(folder: Path, limit: int) -> int:
    """Remove the files that were unused for longest until ``limit`` bytes are left; bytes freed.

    Drafts of processes that were killed go when they are a day old: younger ones may be in use.
    """
    for draft in folder.glob("*/??/.*.tmp"):
        with suppress(OSError):
            is_ours = re.fullmatch(r"[0-9a-f]{64}\.safetensors", draft_target(draft) or "")
            if is_ours and time.time() - draft.stat().st_mtime > DAY:
                draft.unlink()
    files = []
    for path in files_of(folder):
        with suppress(OSError):  # another process was quicker
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = freed = 0
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if freed >= excess:
            break
        with suppress(OSError):  # Windows removes no file that is in use
            path.unlink(missing_ok=True)
            freed += size
    return freed

"""Features on disk, a file per chunk of images and extractor: nothing is extracted twice.

A file appears whole or not at all, and its name says what it holds, so that processes, shards and
restarts share one folder without speaking to each other.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erk.fetch import cache_dir
from metrics.extractors import Extractor
from metrics.table import write

VERSION = 1  # raise it when an extractor's preprocessing or layers change: old features are void


def default_folder() -> Path:
    """Where features are kept unless another place is named: "features" in the cache."""
    return cache_dir() / "features"


def save(folder: Path, extractor: Extractor, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep the tensors of one chunk, beside others of the same images that are there already."""
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with suppress(FileNotFoundError):
        there = load(folder, extractor, key)
        if torch.equal(there["kept"], content["kept"]):
            content = there | content
    write(place(folder, extractor, key), safetensors.torch.save(content))


def load(folder: Path, extractor: Extractor, key: str) -> dict[str, Tensor]:
    """The tensors of one chunk. Raises FileNotFoundError if they are not there."""
    path = place(folder, extractor, key)
    try:
        with suppress(PermissionError):  # a cache that only others may write
            os.utime(path)  # trim spares what was used last
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(
            f"the features in {path} are not there: every process needs the same folder, "
            "name one that all of them see by --cache"
        ) from error


def holds(
    folder: Path, extractor: Extractor, key: str, wanted: Sequence[str], rows: int | None = None
) -> bool:
    """Whether the wanted tensors of a chunk are there, and of at least ``rows`` images."""
    try:
        with safe_open(place(folder, extractor, key), "pt") as file:
            known, n = set(file.keys()), file.get_slice("kept").get_shape()[0]
    except (OSError, SafetensorError):  # not there, or cut by a full disk
        return False
    if rows is not None and n < rows:
        return False
    return n == 0 or known >= {*wanted}  # of a chunk without a readable image there is nothing


def place(folder: Path, extractor: Extractor, key: str) -> Path:
    """The file of one chunk."""
    weights = re.sub(r"\W", "-", extractor.sha256)[:32]
    return folder / f"{extractor.name}-{VERSION}-{weights}" / key[:2] / f"{key}.safetensors"


def _is_ours(path: Path) -> bool:
    """Whether a path has the form of `place`: a cache may be a folder that holds other files."""
    return re.fullmatch("[0-9a-f]{64}", path.stem) is not None and path.stem[:2] == path.parent.name


def trim(folder: Path, limit: int) -> int:
    """Remove the files that were unused for longest until ``limit`` bytes are left; bytes freed."""
    files = []
    for path in filter(_is_ours, folder.glob("*/??/*.safetensors")):
        with suppress(OSError):  # another process was quicker
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = freed = 0
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if freed >= excess:
            break
        path.unlink(missing_ok=True)
        freed += size
    return freed

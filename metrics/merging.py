"""Features and statistics that were made on several machines, put together."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from erk.io.download import sha256_of
from metrics.reference_files import Reference, Statistics, read_reference, write_reference
from metrics.statistics import Moments
from metrics.store import add_file, files_of


def merge_stores(folders: Sequence[Path], dest: Path) -> tuple[int, int]:
    """Put the features of several stores into one; how many files were added, and were there.

    A file is named by the content of its images, so no image can come twice; of one file in two
    stores the outputs are joined. Each is written whole or not at all. Raises ValueError for a
    store without features or a file that cannot be read, OSError.
    """
    added = there = 0
    for folder in folders:
        files = files_of(folder)
        if not files:
            raise ValueError(f"{folder} holds no features: give the folder of --cache")
        for path in files:
            is_new = add_file(path, dest / path.relative_to(folder))
            added, there = added + is_new, there + (not is_new)
    return added, there


def merge_references(paths: Sequence[Path], dest: Path) -> Path:
    """Join references of disjoint sets of images into the one of all images; its path.

    Moments are added in float64; features and labels are joined if all hold them. References do
    not name their images, so only a file given twice can be noticed. Raises ValueError for files
    that differ in extractors, weights, protocol or image size, or without a number of images.
    """
    parts = [read_reference(path) for path in paths]
    hashes = [sha256_of(path) for path in paths]
    if len(set(hashes)) < len(hashes):
        raise ValueError("two of the references are the same file: each set of images counts once")
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if _kind(part) != _kind(first):
            raise ValueError(
                f"{path} and {paths[0]} differ in extractors, weights, protocol or image size: "
                "only references of one kind can be merged"
            )
        if any(found.n is None for found in part.statistics.values()):
            raise ValueError(f"{path} does not tell of how many images it is: make it again")
    statistics = {
        name: _joined([part.statistics[name] for part in parts]) for name in first.statistics
    }
    labels = [part.labels for part in parts]
    return write_reference(
        dest,
        statistics,
        protocol=first.protocol,
        labels=_cat(labels),
        image_size=first.image_size,
    )


def _kind(part: Reference) -> tuple[object, ...]:
    weights = {name: (found.weights, len(found.mean)) for name, found in part.statistics.items()}
    return weights, part.protocol, part.image_size


def _joined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of all images from those of their parts."""
    total = Moments(len(parts[0].mean))
    for part in parts:
        assert part.n is not None
        one = Moments(len(part.mean))
        one.n, one.total = part.n, part.mean * part.n
        one.outer = part.cov * (part.n - 1) + torch.outer(one.total, part.mean)
        total.merge(one)
    features = _cat([part.features for part in parts])
    return Statistics(total.mean, total.cov, total.n, features, parts[0].weights)


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts behind each other; None if one is not there."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if len(found) == len(parts) else None

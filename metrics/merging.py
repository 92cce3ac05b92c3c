"""Merge the features and statistics of several machines."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metrics.reference_files import Reference, read_reference, write_reference
from metrics.statistics import Moments, Statistics
from metrics.store import add_file, files_of


def merge_stores(folders: Sequence[Path], dest: Path) -> tuple[int, int]:
    """Copy the features of several stores into one; return the numbers of new and known files.

    A file is named by the content of its images, so no image can come twice; the outputs of one
    file in two stores are joined. Each file is written atomically. Raises ValueError for a store
    without features or a file that cannot be read, OSError.
    """
    added = known = 0
    for folder in folders:
        files = files_of(folder)
        if not files:
            raise ValueError(f"{folder} holds no features: give the folder of --cache")
        for path in files:
            is_new = add_file(path, dest / path.relative_to(folder))
            added, known = added + is_new, known + (not is_new)
    return added, known


def merge_references(paths: Sequence[Path], dest: Path) -> Path:
    """Merge references of disjoint sets of images into that of all images; return its path.

    Moments are added in float64; features and labels are joined if all hold them. References do
    not name their images, so only a file given twice can be noticed. Raises ValueError for files
    that differ in extractors, weights, protocol or image size, or without a number of images.
    """
    parts = [read_reference(path) for path in paths]
    hashes = [part.sha256 for part in parts]
    if len(set(hashes)) < len(hashes):
        raise ValueError("two of the references are the same file: each set of images counts once")
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if _kind(part) != _kind(first):
            raise ValueError(
                f"{path} and {paths[0]} differ in extractors, weights, protocol or image size: "
                "only references of one kind can be merged"
            )
        if any(one.n is None for one in part.statistics.values()):
            raise ValueError(f"{path} does not hold its number of images: create it again")
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
    weights = {name: (one.weights, len(one.mean)) for name, one in part.statistics.items()}
    return weights, part.protocol, part.image_size


def _joined(parts: Sequence[Statistics]) -> Statistics:
    """Compute the statistics of all images from those of their parts."""
    total = Moments(len(parts[0].mean))
    for part in parts:
        assert part.n is not None
        total.merge(Moments.from_mean_cov(part.mean, part.cov, part.n))
    features = _cat([part.features for part in parts])
    return Statistics(total.mean, total.cov, total.n, features, parts[0].weights)


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate the parts; None if one is missing."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None

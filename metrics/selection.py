"""Which images of a source: a subset, their seeds, their classes and their order."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erk.method.arguments import require
from metrics.images import ImageSource
from metrics.jackknife import is_in_blocks
from metrics.side_files import is_class
from metrics.statistics import whole_number

PER_SUBDIR = 1000  # seeds in each sub-folder of a run


def subset(source: ImageSource, num: int | None, seed: int = 0) -> ImageSource:
    """Draw ``num`` images without replacement, in order; None: keep all of them.

    The draw is that of EDM's and EDM2's data sets, which number the files in the plain order of
    their names, so the same seed picks the same images. Raises ValueError for fewer than 2 images
    or more than there are.
    """
    if num is None:
        return source
    num, seed = whole_number(num, "the size of a subset"), whole_number(seed, "its seed")
    count = len(source.names)
    if not 2 <= num <= count:
        raise ValueError(
            f"{source.path} holds {count} images: a subset has 2 to as many, not {num}"
        )
    plain = list(range(count))
    if source.has_files:
        plain.sort(key=source.names.__getitem__)
    chosen = np.arange(count)
    if num < count:
        np.random.RandomState(seed % (1 << 31)).shuffle(chosen)
    order = sorted(plain[i] for i in chosen[:num])
    return source._replace(
        names=[source.names[i] for i in order],
        fetch=lambda index, shape=None: source.fetch(order[index], shape),
        labels=source.labels and [source.labels[i] for i in order],
    )


def seeds_of(source: ImageSource) -> list[int] | None:
    """Return the seed of every image, from names such as ``000123.png``.

    None if a name has no seed, or if two have the same: then the numbers are no seeds.
    """
    stems = [PurePosixPath(name).stem for name in source.names]
    if not all(re.fullmatch("[0-9]{1,18}", stem) for stem in stems):
        return None
    seeds = [int(stem) for stem in stems]
    return seeds if len(set(seeds)) == len(seeds) else None


def is_in_seed_order(source: ImageSource) -> bool:
    """Return whether neighbours are as different as any two images, because seeds order them.

    Not where sub-folders may stand for classes, or where classes follow seeds in blocks.
    """
    seeds, labels = seeds_of(source), source.labels
    if seeds is None or seeds != sorted(seeds):
        return False
    if any("/" in name for name in source.names):
        parents = (PurePosixPath(name).parent.as_posix() for name in source.names)
        expected = (f"{seed // PER_SUBDIR * PER_SUBDIR:06d}" for seed in seeds)
        if any(a != b for a, b in zip(parents, expected, strict=True)):
            return False
    policy = source.run.get("settings", {}).get("labels")
    if isinstance(policy, str) and policy.startswith("file "):  # whose classes may be in blocks
        return False
    return labels is None or not is_in_blocks(labels)


def labels_of(source: ImageSource, classes: int | None) -> list[Any] | None:
    """Return the class of every image where it is stored or follows from run.json, else None.

    It follows from the run's settings if they name one ``class`` or ``labels: balanced``
    (class = seed mod classes, those of its network; where an older run.json does not name them,
    ``classes``, the extractor's). Files may hold anything: see `checked_labels`.
    """
    network = source.run.get("network")
    recorded = network.get("classes") if isinstance(network, dict) else None
    classes = recorded if is_class(recorded) else classes
    settings = source.run.get("settings", {})
    chosen, seeds = settings.get("class"), seeds_of(source)
    if source.labels is not None:
        return source.labels
    if chosen is not None:
        return [chosen] * len(source.names)
    if settings.get("labels") == "balanced" and seeds is not None and classes:
        return [seed % classes for seed in seeds]
    return None


def checked_labels(
    labels: Sequence[Any] | np.ndarray | Tensor, count: int, classes: int | None, name: str
) -> Tensor:
    """Return labels as int64 [count], one per image.

    Raises ValueError, naming the set of images, for another number of them or for one that is no
    class, an int from 0 on, or not among ``classes``, if that number is known.
    """
    values = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else labels
    require(isinstance(values, Sequence), "labels", "a list of classes, one per image", labels)
    values = [one.item() if isinstance(one, np.generic | Tensor) else one for one in values]
    if len(values) != count:
        raise ValueError(f"{name} holds {count} images, so give {count} labels, not {len(values)}")
    limit = 1 << 31 if classes is None else classes
    for value in values:
        if not is_class(value) or value >= limit:
            known = "0, 1, 2, ..." if classes is None else f"0 to {classes - 1}"
            raise ValueError(
                f"{name} has the class {str(value)[:40]!r}, but classes are {known}: correct the "
                "labels, or leave out the metrics that need them"
            )
    return torch.tensor(values, dtype=torch.long)

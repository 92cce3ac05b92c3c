"""References, which generated images are compared with: by name, by address or from a file."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Strict
from torch import Tensor

from erk.io.config import read_config
from erk.io.download import fetch
from erk.io.resources import data
from erk.method.arguments import PATHS, require
from metrics.extractors import Extractor, check_extractors, load_extractor
from metrics.extractors.weights import check_same_weights
from metrics.features import extract
from metrics.images import load_images
from metrics.reference_files import Reference, read_reference
from metrics.sizes import Size
from metrics.statistics import Statistics, moments_of

ROWS = data("configs") / "references.yaml"
BATCH = 2048  # real images per network call: a small classifier takes them all at once


@dataclass(frozen=True)
class ReferenceRow:
    """One row of configs/references.yaml: a file of statistics, or real images."""

    protocol: str  # the one that it is meant for
    image_size: Annotated[int, Strict()]  # pixels
    statistics: str | None = None  # a file of them: an address, or a path in this repository
    licence: str | None = None  # of the file; None: its source names none
    images: str | None = None  # real images: an address or a path
    features: str | None = None  # other real images, for precision and recall
    extractors: tuple[str, ...] = ()  # of the real images

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if (self.statistics is None) == (self.images is None):
            raise ValueError("must have either statistics or images: give one of them")
        if (self.images is None) != (not self.extractors):
            raise ValueError("must have both images and extractors, or statistics: add one")

    @property
    def is_remote(self) -> bool:
        """Whether the statistics are a published file, which has to be downloaded."""
        return "://" in (self.statistics or "")

    @property
    def has_features(self) -> bool:
        """Whether precision and recall need no other real images."""
        return not self.is_remote


def load_reference(
    source: str | Path,
    extractors: Mapping[str, Extractor] | None = None,
    offline: bool = False,
    load: Callable[[str], Extractor] = load_extractor,
) -> Reference:
    """Load the statistics of real images.

    Parameters
    ----------
    source
        A name (`reference_names`), an address (https://, hf://) or a path; for the formats see
        `metrics.reference_files.read_reference`.
    extractors
        Loaded extractors; statistics under their names must fit them.
    offline
        Never download; else files are downloaded once, into the cache.
    load
        Loads an extractor that a reference of real images needs and that is not in ``extractors``.

    Raises
    ------
    OSError
        A file that is missing or cannot be downloaded.
    ValueError
        An unknown name, a file that cannot be read, or statistics that do not fit.
    """
    known, name = {} if extractors is None else extractors, str(source)
    require(isinstance(source, PATHS), "source", "a name, an address or a path", source)
    check_extractors(known)
    row = known_references().get(name)
    if row is None:
        reference = read_reference(_path(name, offline), known)
    elif row.statistics is not None:
        read = read_reference(_located(row.statistics, offline), known)
        reference = read._replace(name=name, protocol=row.protocol, image_size=row.image_size)
    else:
        networks = {one: known[one] if one in known else load(one) for one in row.extractors}
        reference = _reference_of_images(name, row, networks, offline)
    for extractor in known.values():
        if extractor.name in reference.statistics:
            check_extractor(reference, extractor)
    return reference


def check_extractor(reference: Reference, extractor: Extractor) -> Statistics:
    """Return the reference's statistics under ``extractor``.

    Raises ValueError if there are none, or for another dimension or other weights.
    """
    statistics = reference.statistics.get(extractor.name)
    if statistics is None:
        names = ", ".join(reference.statistics)
        raise ValueError(
            f"the reference {reference.name} has no statistics under {extractor.name}, only under "
            f"{names}: choose a protocol or a reference that fits"
        )
    if len(statistics.mean) != extractor.feature_dim:
        raise ValueError(
            f"the reference {reference.name} has {len(statistics.mean)} dimensions but the "
            f"extractor {extractor.name} has {extractor.feature_dim}: use statistics made with it"
        )
    hashes = {
        f"the reference {reference.name}": statistics.weights, "these images": extractor.sha256
    }  # fmt: skip
    check_same_weights(extractor.name, hashes)
    return statistics


def known_size(source: str | Path | Reference) -> Size | None:
    """Return the size of a reference's images; None: unknown, as that of a file not yet read."""
    if isinstance(source, Reference):
        size = source.image_size
    else:
        row = known_references().get(str(source))
        size = None if row is None else row.image_size
    return (size, size) if isinstance(size, int) else size


def reference_names() -> tuple[str, ...]:
    """Return every name that ``load_reference`` takes."""
    return tuple(known_references())


def describe() -> list[str]:
    """Describe each reference in one line: name, protocol, image size, source and licence."""
    lines = []
    for name, row in known_references().items():
        size = f"{row.image_size}x{row.image_size}"
        licence = f"  ({row.licence})" if row.licence else ""
        lines.append(
            f"{name:16}  {row.protocol:9}  {size:>7}  {row.statistics or row.images}{licence}"
        )
    return lines


@functools.cache
def known_references() -> dict[str, ReferenceRow]:
    """Return the references by name, in the order of configs/references.yaml."""
    return read_config(ROWS, dict[str, ReferenceRow])


def real_images(name: str, offline: bool = False) -> tuple[Tensor, Tensor | None]:
    """Load the real images uint8 [N, C, H, W] and labels int64 [N] of a reference by name.

    Raises ValueError for a reference that has statistics only.
    """
    row = known_references().get(name)
    if row is None or row.images is None:
        with_images = [key for key, one in known_references().items() if one.images is not None]
        raise ValueError(f"{name} has no real images: choose among {', '.join(with_images)}")
    return load_images(_located(row.images, offline))


def _reference_of_images(
    name: str, row: ReferenceRow, extractors: Mapping[str, Extractor], offline: bool
) -> Reference:
    """Compute a reference from the real images of its row."""
    assert row.images is not None
    images, labels = load_images(_located(row.images, offline))
    digest = hashlib.sha256(images.numpy().tobytes())
    outputs = extract(images.split(BATCH), extractors).outputs
    moments = {key: moments_of(one.features) for key, one in outputs.items()}
    if row.features is not None:
        images, labels = load_images(_located(row.features, offline))
        digest.update(images.numpy().tobytes())
        outputs = extract(images.split(BATCH), extractors).outputs
    statistics = {
        key: Statistics(one.mean, one.cov, one.n, outputs[key].features, extractors[key].sha256)
        for key, one in moments.items()
    }
    return Reference(name, digest.hexdigest(), statistics, row.protocol, labels, row.image_size)


def _located(source: str, offline: bool) -> Path:
    """Return the local file of an address, or of a path relative to configs/references.yaml."""
    return fetch(source, offline=offline) if "://" in source else ROWS.parent / source


def _path(source: str, offline: bool) -> Path:
    """Return the local file of an address or a path; ValueError for what can only be a name."""
    if "://" in source:
        return fetch(source, offline=offline)
    path = Path(source)
    if path.exists() or path.suffix or path.name != source:
        return path
    raise ValueError(
        f"there is no reference {source!r}: choose {', '.join(reference_names())}, or give a .npz "
        "or .pkl file"
    )

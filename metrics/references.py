"""What generated images are compared with: references by name, by address or from a file."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from erk.io.download import fetch
from erk.io.resources import data
from metrics.extractors import Extractor
from metrics.reference_files import Reference, Statistics, read_reference
from metrics.statistics import moments_of

ROWS = data("configs") / "references.yaml"
KINDS: dict[str, type] = {"url": str, "protocol": str, "image_size": int, "licence": str}


class Known(NamedTuple):
    """A published reference: one row of configs/references.yaml."""

    url: str
    protocol: str
    image_size: int  # pixels
    licence: str | None = None  # of the file; None: its source names none


def load_reference(
    source: str | Path, extractors: Mapping[str, Extractor] = {}, offline: bool = False
) -> Reference:
    """A reference by name (see ``reference_names``), by address (https://, hf://) or by path.

    ``extractors`` are those at hand: ``digits`` needs the one of that name, and statistics must
    fit those they are for. Files are downloaded once into the cache, with ``offline`` never. For
    the formats see ``metrics.reference_files.read_reference``. Raises OSError (FileNotFoundError,
    ConnectionError) or ValueError for what is not there, cannot be read or does not fit.
    """
    name = str(source)
    if name == "digits":
        return _digits(extractors)
    row = known_references().get(name)
    if row is None:
        reference = read_reference(_place(name, offline), extractors)
    else:
        read = read_reference(fetch(row.url, offline=offline), extractors)
        reference = read._replace(name=name, protocol=row.protocol, image_size=row.image_size)
    for extractor in extractors.values():
        if extractor.name in reference.statistics:
            check_extractor(reference, extractor)
    return reference


def check_extractor(reference: Reference, extractor: Extractor) -> Statistics:
    """The reference's statistics under ``extractor``.

    Raises ValueError if there are none, if they have another dimension or if they were made with
    other weights.
    """
    found = reference.statistics.get(extractor.name)
    if found is None:
        there = ", ".join(reference.statistics)
        raise ValueError(
            f"the reference {reference.name} has no statistics under {extractor.name}, only under "
            f"{there}: choose a protocol or a reference that fits"
        )
    if len(found.mean) != extractor.feature_dim:
        raise ValueError(
            f"the reference {reference.name} has {len(found.mean)} dimensions but the extractor "
            f"{extractor.name} has {extractor.feature_dim}: use statistics made with it"
        )
    if found.weights and extractor.sha256 and found.weights != extractor.sha256:
        raise ValueError(
            f"the reference {reference.name} was made with other weights of {extractor.name} "
            f"(sha256 {found.weights[:8]}, here {extractor.sha256[:8]}): make it again"
        )
    return found


def reference_names() -> tuple[str, ...]:
    """Every name that ``load_reference`` takes."""
    return ("digits", *known_references())


def describe() -> list[str]:
    """One line per reference: name, protocol, image size, address and licence of the file."""
    rows = {"digits": Known("built in: scikit-learn's", "digits", 8)} | known_references()
    lines = []
    for name, row in rows.items():
        size = f"{row.image_size}x{row.image_size}"
        licence = f"  ({row.licence})" if row.licence else ""
        lines.append(f"{name:16}  {row.protocol:9}  {size:>7}  {row.url}{licence}")
    return lines


@functools.cache
def known_references() -> dict[str, Known]:
    """The published references by name, in the order of configs/references.yaml."""
    return read_rows(ROWS)


def read_rows(path: Path) -> dict[str, Known]:
    """The rows of a table of references; ValueError names the file, the row and the key."""
    try:
        rows = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rows, dict):
        raise ValueError(f"{path} must hold one row per name of a reference")
    return {name: _known(f"{path}: {name}", row) for name, row in rows.items()}


def real_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled digits: images uint8 [1797, 1, 8, 8] (0..255), labels int64 [1797].

    Pixels are value * 255 / 16 truncated, as a digits model decodes them.
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    values, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((values * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(labels).long()


def _digits(extractors: Mapping[str, Extractor]) -> Reference:
    if "digits" not in extractors:
        raise ValueError("the reference digits needs the extractor digits: use its protocol")
    extractor = extractors["digits"]
    images, labels = real_digits()
    features = extractor(images).features.cpu()
    moments = moments_of(features)
    found = Statistics(moments.mean, moments.cov, moments.n, features, extractor.sha256)
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Reference("digits", digest, {"digits": found}, "digits", labels, images.shape[-1])


def _place(source: str, offline: bool) -> Path:
    """The local file of an address or a path; ValueError for what can only be a name."""
    if "://" in source:
        return fetch(source, offline=offline)
    path = Path(source)
    if path.exists() or path.suffix or path.name != source:
        return path
    raise ValueError(
        f"there is no reference {source!r}: choose {', '.join(reference_names())}, or give a .npz "
        "or .pkl file"
    )


def _known(where: str, row: Any) -> Known:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a row of {', '.join(KINDS)}")
    for key, value in row.items():
        if key not in KINDS:
            raise ValueError(f"{where} has the unknown key {key!r}: use {', '.join(KINDS)}")
        if type(value) is not KINDS[key]:
            raise ValueError(f"{where} has the {key} {value!r}: it must be {KINDS[key].__name__}")
    for key in KINDS.keys() - row.keys() - Known._field_defaults.keys():
        raise ValueError(f"{where} has no {key}: add it")
    return Known(**row)

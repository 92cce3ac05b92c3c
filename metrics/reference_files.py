"""Statistics of real images in files: EDM2's .pkl, EDM's and ADM's .npz, and our own .npz.

A file is told by its content, not by its name, and nothing that it holds is executed.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from erk.io import pickles
from erk.io.atomic import replacing
from erk.io.download import sha256_of
from erk.io.untrusted import DECODE_ERRORS
from metrics.extractors import Extractor
from metrics.npz import read_npz
from metrics.statistics import check_finite

FORMAT = "erk-guid reference 1"  # the value under "format" in our own files
EDM2_KEYS = {"fid": "inception", "fd_dinov2": "dinov2"}  # EDM2's name of a metric -> extractor
UNNAMED = {2048: "inception", 64: "digits"}  # whose a mu of that length is, if nothing says it
PROTOCOLS = {"inception": "edm", "digits": "digits"}  # what files without names are made for
ASYMMETRY = 1e-6  # largest |sigma - sigma^T| relative to the largest |sigma|
FIELDS = ("mu", "sigma", "num_images", "features", "weights")  # of one extractor


class Statistics(NamedTuple):
    """Moments of real images under one extractor, and their features if there."""

    mean: Tensor  # [D] float64
    cov: Tensor  # [D, D] float64, divisor n - 1
    n: int | None = None  # None: the file does not say
    features: Tensor | None = None  # [n, D] float32
    weights: str | None = None  # sha256 of the extractor's weights; None: the file does not say


class Reference(NamedTuple):
    """Statistics of one set of real images by extractor."""

    name: str
    sha256: str  # of the file; for built-in images, of their uint8 pixels
    statistics: Mapping[str, Statistics]  # by extractor, e.g. "inception", "dinov2", "digits"
    protocol: str | None = None  # the protocol it is made for; None: unknown
    labels: Tensor | None = None  # [n] int64, real classes
    image_size: int | None = None  # pixels, where known


def read_reference(path: Path, extractors: Mapping[str, Extractor] = {}) -> Reference:
    """The reference in a file, named after it.

    EDM2's .pkl holds ``fid`` (extractor inception) or ``fd_dinov2`` (dinov2), each with mu [D] and
    sigma [D, D]. ADM's .npz holds mu, sigma (inception), mu_s, sigma_s (inception-spatial) and real
    images, which are not read. A .npz with mu and sigma alone, as EDM writes it, perhaps with
    num_images and features [N, D], belongs to the extractor among ``extractors`` that has as many
    dimensions, else to inception (2048) or digits (64). ``write_reference`` describes our own .npz.

    Raises FileNotFoundError or OSError, or ValueError for a file that cannot be read or holds
    anything but finite numbers of fitting shapes and symmetric covariances.
    """
    if path.is_dir():
        raise ValueError(f"the reference {path} is a folder: give a .npz or .pkl of statistics")
    if not path.exists():
        raise FileNotFoundError(f"the reference file {path} does not exist: check the path")
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK":  # what every zip begins with, and a .npz is a zip
        found = _read_npz(path, extractors)
    elif start.startswith(b"\x80"):  # what every pickle since protocol 2 begins with
        found = _read_pickle(path)
    else:
        raise ValueError(f"{path} is not a readable npz or pkl file: fetch or make it again")
    return found._replace(sha256=sha256_of(path))


def write_reference(
    path: str | Path,
    statistics: Mapping[str, Statistics],
    *,
    protocol: str | None = None,
    labels: Tensor | None = None,
    image_size: int | None = None,
) -> Path:
    """Write a reference as our own .npz, whole or not at all, with its folders; return the path.

    The keys are ``format``, ``<extractor>.mu`` [D] and ``.sigma`` [D, D] float64 and, where known,
    ``<extractor>.num_images``, ``.features`` [N, D] float32, ``.weights``, and ``labels`` [N] int64
    (one per row of features), ``image_size``, ``protocol``. Every extractor has its own number of
    images, since features may be of fewer than the moments.

    Raises ValueError for what ``read_reference`` would refuse, OSError if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"the reference {path} must end in .npz: rename it")
    found = {"format": FORMAT, "protocol": protocol, "image_size": image_size, "labels": labels}
    for name, moments in statistics.items():
        found |= {f"{name}.{key}": value for key, value in zip(FIELDS, moments, strict=True)}
    arrays: dict[str, Any] = {
        key: _array(value) for key, value in found.items() if value is not None
    }
    _ours(path, arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, **arrays)
    return path


def _array(value: Any) -> np.ndarray:
    return value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)


def _read_pickle(path: Path) -> Reference:
    content = pickles.load(path)
    if not isinstance(content, dict) or not EDM2_KEYS.keys() & content.keys():
        raise ValueError(
            f"{path} is no reference: a .pkl must hold a dictionary with 'fid' or 'fd_dinov2'"
        )
    n = content.get("num_images")
    statistics = {
        name: _statistics(f"{path} ({key})", content[key], n)
        for key, name in EDM2_KEYS.items()
        if key in content
    }
    return Reference(path.stem, "", statistics, "edm2")


def _read_npz(path: Path, extractors: Mapping[str, Extractor]) -> Reference:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} is not a readable npz file: make it again ({error})") from error
    if "format" in names:
        return _ours(path, read_npz(path, names))
    if "mu_s" in names:
        return _adm(path, read_npz(path, ("mu", "sigma", "mu_s", "sigma_s")))
    return _unnamed(path, read_npz(path, ("mu", "sigma", "num_images", "features")), extractors)


def _ours(path: Path, arrays: Mapping[str, np.ndarray]) -> Reference:
    """Our own format, see ``write_reference``."""
    if (found := str(arrays.get("format"))) != FORMAT:
        raise ValueError(f"{path} has the format {found!r} but {FORMAT!r} is read: make it again")
    statistics = {}
    for name in [key.removesuffix(".mu") for key in arrays if key.endswith(".mu")]:
        part = {key: arrays[f"{name}.{key}"] for key in FIELDS if f"{name}.{key}" in arrays}
        statistics[name] = _statistics(f"{path} ({name})", part, part.get("num_images"))
    if not statistics:
        raise ValueError(f"{path} is no reference: it holds statistics under no extractor")
    protocol = str(arrays["protocol"]) if "protocol" in arrays else None
    labels = _labels(path, arrays["labels"], statistics) if "labels" in arrays else None
    size = arrays.get("image_size")
    pixels = None if size is None else _whole(size, f"{path}: the image size")
    return Reference(path.stem, "", statistics, protocol, labels, pixels)


def _adm(path: Path, arrays: Mapping[str, np.ndarray]) -> Reference:
    """ADM's reference batches; mu_s, sigma_s belong to features with their place in the image."""
    spatial = {key.removesuffix("_s"): arrays[key] for key in ("mu_s", "sigma_s") if key in arrays}
    statistics = {
        "inception": _statistics(f"{path} (mu)", arrays),
        "inception-spatial": _statistics(f"{path} (mu_s)", spatial),
    }
    return Reference(path.stem, "", statistics, "adm")


def _unnamed(
    path: Path, arrays: Mapping[str, np.ndarray], extractors: Mapping[str, Extractor]
) -> Reference:
    """mu and sigma without a word on the extractor: its number of dimensions tells it."""
    statistics = _statistics(str(path), arrays, arrays.get("num_images"))
    dim = len(statistics.mean)
    fitting = [name for name, extractor in extractors.items() if extractor.feature_dim == dim]
    name = fitting[0] if fitting else UNNAMED.get(dim)
    if name is None:
        known = UNNAMED | {extractor.feature_dim: key for key, extractor in extractors.items()}
        fits = " or ".join(f"{size} ({key})" for size, key in known.items())
        raise ValueError(
            f"{path} has {dim} dimensions but says of no extractor, so it must have {fits}"
        )
    return Reference(path.stem, "", {name: statistics}, PROTOCOLS.get(name))


def _statistics(where: str, part: Any, n: Any = None) -> Statistics:
    """The checked statistics of one extractor; ``part`` holds some of FIELDS."""
    if not isinstance(part, Mapping) or not {"mu", "sigma"} <= part.keys():
        raise ValueError(f"{where} is no reference: it must hold mu [D] and sigma [D, D]")
    mean = _numbers(part["mu"], np.float64, f"mu in {where}")
    cov = _numbers(part["sigma"], np.float64, f"sigma in {where}")
    if mean.ndim != 1 or len(mean) < 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{where} holds mu {list(mean.shape)} and sigma {list(cov.shape)}: "
            "they must be [D] and [D, D]"
        )
    check_finite(mean, f"means in {where}")
    check_finite(cov, f"covariances in {where}")
    if (cov - cov.T).abs().max() > ASYMMETRY * cov.abs().max():
        raise ValueError(f"{where} holds a sigma that is not symmetric: make it again")
    count = None if n is None else _whole(n, f"{where}: the number of images", least=2)
    weights = _text(part["weights"]) if "weights" in part else None
    if "features" not in part:
        return Statistics(mean, cov, count, None, weights)
    features = _numbers(part["features"], np.float32, f"features in {where}")
    if features.ndim != 2 or features.shape[1] != len(mean):
        raise ValueError(f"{where} holds features {list(features.shape)}: they must be [N, D]")
    check_finite(features, f"features in {where}")
    return Statistics(mean, cov, count or len(features), features, weights)


def _labels(path: Path, value: np.ndarray, statistics: Mapping[str, Statistics]) -> Tensor:
    if value.ndim != 1 or value.dtype.kind not in "iu":
        raise ValueError(f"{path} holds labels {value.dtype} {list(value.shape)}: give int64 [N]")
    for name, found in statistics.items():
        if found.features is not None and len(found.features) != len(value):
            raise ValueError(
                f"{path} holds {len(value)} labels but {len(found.features)} rows of {name} "
                "features: give one label per row"
            )
    return torch.from_numpy(value.astype(np.int64))


def _numbers(value: Any, dtype: type, what: str) -> Tensor:
    """What a file holds as a tensor, whatever its type and byte order."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise ValueError(f"{what} is no array of real numbers: make the file again")
    return torch.from_numpy(np.asarray(value, dtype, order="C"))


def _whole(value: Any, what: str, least: int = 1) -> int:
    is_plain = isinstance(value, int | float | np.number | np.ndarray)  # a list may hold itself
    number = np.asarray(value if is_plain else "text")
    is_number = number.size == 1 and number.dtype.kind in "fiu"
    if not is_number or not float(number.item()).is_integer() or number.item() < least:
        shown = str(number)[:40] if number.dtype.kind in "fiub" else type(value).__name__
        raise ValueError(f"{what} must be a whole number of at least {least}, not {shown}")
    return int(number.item())


def _text(value: Any) -> str | None:
    """A text of a file; None for anything else, which a pickle may hold without an end."""
    return str(value) if isinstance(value, str | np.ndarray) else None

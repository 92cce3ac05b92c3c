"""Statistics of real images in files: EDM2's .pkl, EDM's and ADM's .npz, and
this project's .npz.

The content of a file decides its format, not its name, and nothing that it holds is executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from erk.io import pickles
from erk.io.atomic import replacing
from erk.io.files import open_regular, unchanged
from metrics.distances import ASYMMETRY
from metrics.extractors import Extractor, main_extractors
from metrics.npz import array_names, read_npz
from metrics.protocols import default_protocol
from metrics.sizes import Size
from metrics.statistics import Statistics, check_finite

FORMAT = "erk-guid reference 1"  # the value under "format" in this project's files
EDM2_KEYS = {"fid": "inception", "fd_dinov2": "dinov2"}  # EDM2's name of a metric -> extractor
LARGEST = 1e100  # |mu| and |sigma|: products of two of them must be finite
GENERAL = ("format", "protocol", "image_size", "labels")  # of the file
PUBLISHED = {  # names of others, so that EDM, EDM2, ADM and pytorch-fid read this project's files
    "mu": "inception.mu",
    "sigma": "inception.sigma",
    "mu_s": "inception-spatial.mu",
    "sigma_s": "inception-spatial.sigma",
}
FIELDS = ("mu", "sigma", "num_images", "features", "weights")  # of each extractor


class Reference(NamedTuple):
    """Statistics of one set of real images by extractor."""

    name: str
    sha256: str  # of the file; for built-in images, of their uint8 pixels
    statistics: Mapping[str, Statistics]  # extractor -> statistics
    protocol: str | None = None  # the one that it is meant for; None: unknown
    labels: Tensor | None = None  # [n] int64, real classes
    image_size: int | Size | None = None  # pixels, where known; (height, width) if these differ


def read_reference(path: Path, extractors: Mapping[str, Extractor] = {}) -> Reference:
    """Read the reference in a file; it is named after the file.

    EDM2's .pkl holds ``fid`` (extractor inception) or ``fd_dinov2`` (dinov2), each with mu [D] and
    sigma [D, D]. ADM's .npz holds mu, sigma (inception), mu_s, sigma_s (inception-spatial) and real
    images, which are not read. A .npz with mu and sigma alone, as EDM writes it, perhaps with
    num_images and features [N, D], belongs to the extractor among ``extractors`` that has as many
    dimensions, else to the only known one of that size: inception for 2048. ``write_reference``
    describes this project's .npz.

    Raises FileNotFoundError or OSError, or ValueError for a file that cannot be read or holds
    anything but finite numbers of fitting shapes and symmetric covariances.
    """
    if path.is_dir():
        raise ValueError(f"the reference {path} is a folder: give a .npz or .pkl of statistics")
    if not path.exists():
        raise FileNotFoundError(f"the reference file {path} does not exist: check the path")
    with unchanged(path) as sha256:
        with open_regular(path) as file:
            start = file.read(2)
        if start == b"PK":  # what every zip begins with, and a .npz is a zip
            reference = _read_npz(path, extractors)
        elif start.startswith(b"\x80"):  # what every pickle since protocol 2 begins with
            reference = _read_pickle(path)
        else:
            raise ValueError(f"{path} is not a readable npz or pkl file: fetch or create it again")
    return reference._replace(sha256=sha256)


def write_reference(
    path: str | Path,
    statistics: Mapping[str, Statistics],
    *,
    protocol: str | None = None,
    labels: Tensor | None = None,
    image_size: int | Size | None = None,
) -> Path:
    """Write a reference as this project's .npz, atomically, with its folders; return the path.

    The keys are ``format``, ``<extractor>.mu`` [D] and ``.sigma`` [D, D] float64 (of inception
    ``mu`` and ``sigma``, the names that EDM, EDM2 and pytorch-fid read) and, where known,
    ``<extractor>.num_images``, ``.features`` [N, D] float32, ``.weights``, and ``labels`` [N] int64
    (one per row of features), ``image_size``, ``protocol``. Every extractor has its own number of
    images, since features may be of fewer than the moments.

    Raises ValueError for what ``read_reference`` would refuse, OSError if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"the reference {path} must end in .npz: rename it")
    values = {"format": FORMAT, "protocol": protocol, "image_size": image_size, "labels": labels}
    for name, one in statistics.items():
        values |= {f"{name}.{key}": value for key, value in zip(FIELDS, one, strict=True)}
    public = {ours: theirs for theirs, ours in PUBLISHED.items()}
    arrays: dict[str, Any] = {
        public.get(key, key): _array(value) for key, value in values.items() if value is not None
    }
    _checked(path, arrays)
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
    names = array_names(path)
    if "format" in names:
        fields = (*FIELDS, *GENERAL, *PUBLISHED)
        wanted = [name for name in names if name.rpartition(".")[2] in fields]
        return _checked(path, read_npz(path, wanted))
    if "mu_s" in names:
        return _adm(path, read_npz(path, ("mu", "sigma", "mu_s", "sigma_s")))
    return _unnamed(path, read_npz(path, ("mu", "sigma", "num_images", "features")), extractors)


def _checked(path: Path, arrays: Mapping[str, np.ndarray]) -> Reference:
    """Check and assemble the arrays of this project's format, see ``write_reference``."""
    if (version := str(arrays.get("format"))) != FORMAT:
        raise ValueError(
            f"{path} has the format {version!r} but {FORMAT!r} is read: create it again"
        )
    arrays = {PUBLISHED.get(key, key): value for key, value in arrays.items()}
    statistics = {}
    for name in [key.removesuffix(".mu") for key in arrays if key.endswith(".mu")]:
        part = {key: arrays[f"{name}.{key}"] for key in FIELDS if f"{name}.{key}" in arrays}
        statistics[name] = _statistics(f"{path} ({name})", part, part.get("num_images"))
    if not statistics:
        raise ValueError(f"{path} is no reference: it names no extractor")
    protocol = str(arrays["protocol"]) if "protocol" in arrays else None
    labels = _labels(path, arrays["labels"], statistics) if "labels" in arrays else None
    size = arrays.get("image_size")
    pixels = None if size is None else _image_size(size, f"{path}: the image size")
    return Reference(path.stem, "", statistics, protocol, labels, pixels)


def _image_size(value: np.ndarray, what: str) -> int | Size:
    if value.shape != (2,):
        return _integer(value, what)
    height, width = (_integer(side, what) for side in value)
    return height, width


def _adm(path: Path, arrays: Mapping[str, np.ndarray]) -> Reference:
    """Read ADM's reference batches; mu_s, sigma_s belong to features that keep the position."""
    spatial = {key.removesuffix("_s"): arrays[key] for key in ("mu_s", "sigma_s") if key in arrays}
    statistics = {
        "inception": _statistics(f"{path} (mu)", arrays),
        "inception-spatial": _statistics(f"{path} (mu_s)", spatial),
    }
    return Reference(path.stem, "", statistics, "adm")


def _unnamed(
    path: Path, arrays: Mapping[str, np.ndarray], extractors: Mapping[str, Extractor]
) -> Reference:
    """Read mu and sigma that name no extractor: their number of dimensions decides."""
    statistics = _statistics(str(path), arrays, arrays.get("num_images"))
    dim = len(statistics.mean)
    known = main_extractors() | {one.feature_dim: name for name, one in extractors.items()}
    if dim not in known:
        sizes = " or ".join(f"{size} ({name})" for size, name in known.items())
        raise ValueError(
            f"{path} has {dim} dimensions but names no extractor: it must have {sizes}"
        )
    name = known[dim]
    return Reference(path.stem, "", {name: statistics}, default_protocol([name]))


def _statistics(where: str, part: Any, n: Any = None) -> Statistics:
    """Check the statistics of one extractor; ``part`` holds some of FIELDS."""
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
    if max(mean.abs().max(), cov.abs().max()) > LARGEST:
        raise ValueError(f"{where} holds numbers beyond {LARGEST:g}: create it again")
    if (cov - cov.T).abs().max() > ASYMMETRY * cov.abs().max():
        raise ValueError(f"{where} holds a sigma that is not symmetric: create it again")
    count = None if n is None else _integer(n, f"{where}: the number of images", least=2)
    weights = _text(part["weights"]) if "weights" in part else None
    if "features" not in part:
        return Statistics(mean, cov, count, None, weights)
    features = _numbers(part["features"], np.float32, f"features in {where}")
    if features.ndim != 2 or features.shape[1] != len(mean) or len(features) < 2:
        raise ValueError(
            f"{where} holds features {list(features.shape)}: they must be [N, D], N at least 2"
        )
    check_finite(features, f"features in {where}")
    return Statistics(mean, cov, count or len(features), features, weights)


def _labels(path: Path, value: np.ndarray, statistics: Mapping[str, Statistics]) -> Tensor:
    if value.ndim != 1 or value.dtype.kind not in "iu":
        raise ValueError(f"{path} holds labels {value.dtype} {list(value.shape)}: give int64 [N]")
    for name, one in statistics.items():
        if one.features is not None and len(one.features) != len(value):
            raise ValueError(
                f"{path} holds {len(value)} labels but {len(one.features)} rows of {name} "
                "features: give one label per row"
            )
    if len(value) and not 0 <= value.min() <= value.max() < 1 << 31:
        raise ValueError(
            f"{path} holds labels from {value.min()} to {value.max()}: classes are 0, 1, 2, ..."
        )
    return torch.from_numpy(value.astype(np.int64))


def _numbers(value: Any, dtype: type, what: str) -> Tensor:
    """Convert an array of a file to a tensor, whatever its type and byte order."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise ValueError(f"{what} is no array of real numbers: create the file again")
    return torch.from_numpy(np.asarray(value, dtype, order="C"))


def _integer(value: Any, what: str, least: int = 1) -> int:
    is_plain = isinstance(value, int | float | np.number | np.ndarray)  # a list may hold itself
    number = np.asarray(value if is_plain else "text")
    is_number = number.size == 1 and number.dtype.kind in "fiu"
    if not is_number or not float(number.item()).is_integer() or number.item() < least:
        shown = str(number)[:40] if number.dtype.kind in "fiub" else type(value).__name__
        raise ValueError(f"{what} must be a whole number of at least {least}, not {shown}")
    return int(number.item())


def _text(value: Any) -> str | None:
    """Return a text of a file; None for anything else, whose text may be endless."""
    return str(value) if isinstance(value, str | np.ndarray) else None

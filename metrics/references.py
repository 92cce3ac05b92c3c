"""What generated images are compared with: moments of real images, and features if there."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from erk.fetch import sha256_of
from metrics.extractors import Extractor
from metrics.images import read_npz
from metrics.statistics import check_finite, moments_of

NAMES = ("digits",)


class Reference(NamedTuple):
    """Statistics of real images under one extractor."""

    name: str
    sha256: str  # of the file; for built-in images, of their uint8 pixels
    n: int | None  # how many images; None: the file does not say
    mean: Tensor  # [D] float64
    cov: Tensor  # [D, D] float64, divisor n - 1
    features: Tensor | None = None  # [n, D] float32; None: no precision, recall, floor
    labels: Tensor | None = None  # [n] int64, the real classes


def load_reference(source: str | Path, extractor: Extractor) -> Reference:
    """A reference by name (``digits``) or from an npz.

    The npz holds ``mu`` [D] and ``sigma`` [D, D] as EDM writes them, and may hold ``num_images``
    and ``features`` [N, D]. Raises FileNotFoundError or ValueError for what is not there, cannot
    be read or has another dimension than ``extractor``.
    """
    if str(source) == "digits":
        reference = _digits(extractor)
    elif Path(source).suffix == ".npz":
        reference = _from_npz(Path(source))
    else:
        raise ValueError(
            f"the reference {str(source)!r} is not available in this version: use "
            f"{', '.join(NAMES)} or a .npz file with mu and sigma"
        )
    if len(reference.mean) != extractor.feature_dim:
        raise ValueError(
            f"the reference {source} has {len(reference.mean)} dimensions but the extractor "
            f"{extractor.name} has {extractor.feature_dim}: use statistics made with it"
        )
    return reference


def real_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled digits: images uint8 [1797, 1, 8, 8] (0..255), labels int64 [1797].

    Pixels are value * 255 / 16 truncated, as a digits model decodes them.
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    values, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((values * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(labels).long()


def _digits(extractor: Extractor) -> Reference:
    images, labels = real_digits()
    features = extractor(images).features.cpu()
    moments = moments_of(features)
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Reference(
        "digits", digest, moments.n, moments.mean, moments.cov, features=features, labels=labels
    )


def _from_npz(path: Path) -> Reference:
    if not path.exists():
        raise FileNotFoundError(f"the reference file {path} does not exist")
    arrays = read_npz(path, ("mu", "sigma", "num_images", "features"))
    if "mu" not in arrays or "sigma" not in arrays:
        raise ValueError(f"{path} is no reference: an npz must hold mu [D] and sigma [D, D]")
    mean, cov = (torch.from_numpy(arrays[key]).double() for key in ("mu", "sigma"))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} holds mu {list(mean.shape)} and sigma {list(cov.shape)}: "
            "they must be [D] and [D, D]"
        )
    check_finite(mean, f"means in {path}")
    check_finite(cov, f"covariances in {path}")
    features = torch.from_numpy(arrays["features"]).float() if "features" in arrays else None
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean)):
        raise ValueError(f"{path} holds features {list(features.shape)}: they must be [N, D]")
    n = int(arrays["num_images"]) if "num_images" in arrays else None
    if n is None and features is not None:
        n = len(features)
    return Reference(path.stem, sha256_of(path), n, mean, cov, features=features)

"""Mean and covariance of features, gathered batch by batch and merged over processes."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROWS = 1024  # float64 rows multiplied at a time: fast, and memory stays flat
FEW = 128  # rows checked at a time


class Statistics(NamedTuple):
    """Moments of real images under one extractor, and their features where known."""

    mean: Tensor  # [D] float64
    cov: Tensor  # [D, D] float64, divisor n - 1
    n: int | None = None  # None: the file does not say
    features: Tensor | None = None  # [m, D] float32; of these or of other real images
    weights: str | None = None  # sha256 of the extractor's weights; None: the file does not say


class Moments:
    """Number, sum and outer-product sum of features, in float64; the sums of two runs add.

    ``Moments(2048).add(batch)`` accumulates batches, ``a.merge(b)`` joins processes.

    Attributes
    ----------
    n : number of samples
    total : sum, float64 [D]
    outer : sum of x x^T, float64 [D, D]
    mean, cov : mean [D] and unbiased covariance [D, D], float64
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def from_mean_cov(cls, mean: Tensor, cov: Tensor, n: int) -> "Moments":
        """Rebuild the sums from mean [D], covariance [D, D] (divisor n - 1) and n."""
        moments = cls(len(mean))
        moments.n, moments.total = n, mean * n
        moments.outer = cov * (n - 1) + torch.outer(moments.total, mean)
        return moments

    def add(self, features: Tensor) -> "Moments":
        """Add a batch of features [B, D] and return self.

        Raises ValueError for another dimension or for NaN and infinite features.
        """
        if features.ndim != 2 or features.shape[1] != len(self.total):
            raise ValueError(
                f"features of shape {list(features.shape)} do not fit moments of dimension "
                f"{len(self.total)}: give [B, {len(self.total)}]"
            )
        check_finite(features, "features")
        for rows in features.split(ROWS):
            rows = rows.to(self.total.device, torch.float64)
            self.total += rows.sum(0)
            self.outer.addmm_(rows.T, rows)
        self.n += len(features)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Add the samples that ``other`` has seen and return self."""
        if other.total.shape != self.total.shape:
            raise ValueError(
                f"moments of dimension {len(other.total)} cannot be merged into "
                f"{len(self.total)}: use one extractor for both"
            )
        self.n += other.n
        self.total += other.total
        self.outer += other.outer
        return self

    def without(self, other: "Moments") -> "Moments":
        """Return the moments of the samples that ``other`` has not seen."""
        rest = Moments(len(self.total))
        rest.n = self.n - other.n
        rest.total, rest.outer = self.total - other.total, self.outer - other.outer
        return rest

    @property
    def mean(self) -> Tensor:
        """Mean [D], float64."""
        if self.n < 1:
            raise ValueError("no samples, no mean: add features first")
        return self.total / self.n

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (divisor N - 1) [D, D], float64."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.n}")
        return (self.outer - torch.outer(self.total, self.mean)) / (self.n - 1)


def moments_of(features: Tensor) -> Moments:
    """Compute the moments of one set of features [N, D]."""
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], not of shape {list(features.shape)}")
    return Moments(features.shape[1]).add(features)


def as_features(values: Any, name: str, least: int) -> Tensor:
    """Convert features [N, D] to a tensor; other types than float32 and float64 become float32.

    Raises ValueError for another shape, fewer than ``least`` samples, NaN or infinity.
    """
    if not isinstance(values, Tensor):  # PyTorch warns of arrays that it could not write to
        values = torch.from_numpy(np.require(values, requirements="W"))
    features = values.detach()
    if features.dtype not in (torch.float32, torch.float64):
        features = features.float()
    if features.ndim != 2 or len(features) < least:
        raise ValueError(
            f"{name} features must be [N, D] with N >= {least}, not {list(features.shape)}"
        )
    check_finite(features, f"{name} features")
    return features


def check_same_dimension(real: Tensor, generated: Tensor) -> None:
    """Raise ValueError unless features [N, D] and [M, D] have one D."""
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} dimensions and generated ones "
            f"{generated.shape[1]}: use one extractor for both"
        )


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError, naming the first bad row, if ``values`` holds NaN or infinity."""
    for start in range(0, len(values), FEW):  # the check's own memory stays flat, too
        finite = torch.isfinite(values[start : start + FEW])
        if not finite.all():
            row = start + int((~finite).nonzero()[0, 0])
            raise ValueError(
                f"the {what} hold NaN or infinity (first in row {row}): remove the cause"
            )

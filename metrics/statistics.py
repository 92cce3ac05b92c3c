"""Mean and covariance of features, gathered batch by batch and merged over processes."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from erk.method.arguments import require, shown

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
    """Number, mean and scatter of features, in float64; those of two processes can be merged.

    The scatter is accumulated around the mean (Chan et al. 1983), not as a sum of products, which
    would leave only rounding errors for features far from 0 or all alike.
    ``Moments(2048).add(batch)`` accumulates batches, ``a.merge(b)`` joins processes.

    Attributes
    ----------
    n
        Number of samples.
    mean, cov
        Mean [D] and unbiased covariance [D, D], float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        dim = whole_number(dim, "dim", least=1)
        require(isinstance(device, str | torch.device), "device", "a device such as cpu", device)
        self.n = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = self._mean.new_zeros(dim, dim)  # sum of (x - mean)(x - mean)^T

    @classmethod
    def from_mean_cov(cls, mean: Tensor, cov: Tensor, n: int) -> "Moments":
        """Rebuild the moments from mean [D], covariance [D, D] (divisor n - 1) and n.

        Raises ValueError for shapes that do not fit, and for n below 2.
        """
        n = whole_number(n, "n", least=2)
        require(isinstance(mean, Tensor) and mean.ndim == 1, "mean", "a tensor [D]", mean)
        is_square = isinstance(cov, Tensor) and [*cov.shape] == [len(mean)] * 2
        require(is_square, "cov", f"a tensor {[len(mean)] * 2}", cov)
        moments = cls(len(mean), mean.device)
        moments.n, moments._mean, moments._scatter = n, mean.double(), cov.double() * (n - 1)
        return moments

    @property
    def dim(self) -> int:
        """Number of dimensions D."""
        return len(self._mean)

    @property
    def device(self) -> torch.device:
        """Device of the sums."""
        return self._mean.device

    def add(self, features: Tensor) -> "Moments":
        """Add a batch of features [B, D] and return self.

        Raises ValueError for another dimension or for NaN and infinite features.
        """
        if not isinstance(features, Tensor) or features.is_complex():
            raise ValueError("features must be a tensor of real numbers: torch.as_tensor(features)")
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features of shape {list(features.shape)} do not fit moments of dimension "
                f"{self.dim}: give [B, {self.dim}]"
            )
        check_finite(features, "features")
        for rows in features.split(ROWS):
            if len(rows):
                wide = rows.to(self._mean.device, torch.float64)
                mean = wide[0] + (wide - wide[0]).mean(0)  # exact where all rows are alike
                around = wide - mean
                self._scatter.addmm_(around.T, around)
                self._include(len(rows), mean)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Add the samples that ``other`` has seen and return self."""
        require(isinstance(other, Moments), "other", "Moments", other)
        if other.dim != self.dim:
            raise ValueError(
                f"moments of dimension {other.dim} cannot be merged into {self.dim}: use one "
                "extractor for both"
            )
        if other.n:
            self._scatter += other._scatter
            self._include(other.n, other._mean)
        return self

    def _include(self, n: int, mean: Tensor) -> None:
        """Add the spread between n samples around ``mean`` [D] and those of before."""
        step, total = mean - self._mean, self.n + n
        if self.n:
            self._scatter.addr_(step, step, alpha=self.n * n / total)
        self._mean = self._mean + step * (n / total)
        self.n = total

    @property
    def mean(self) -> Tensor:
        """Mean [D], float64."""
        if self.n < 1:
            raise ValueError("no samples, no mean: add features first")
        return self._mean

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (divisor N - 1) [D, D], float64."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.n}")
        return self._scatter / (self.n - 1)


def moments_of(features: Tensor) -> Moments:
    """Compute the moments of one set of features [N, D], on a CUDA device if they lie there."""
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], not of shape {list(features.shape)}")
    return Moments(features.shape[1], "cpu" if features.is_mps else features.device).add(features)


def merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of the samples of all parts, of which there is at least one."""
    total = Moments(parts[0].dim, parts[0].device)
    for part in parts:
        total.merge(part)
    return total


def without_each(parts: Sequence[Moments]) -> Iterator[Moments]:
    """Yield the moments of all parts but the first, all but the second, ...

    They are merged, not subtracted: what is left of a few samples unlike the rest would be
    rounding. Halving shares merges: of G parts there are about G log2 G.
    """

    def of(inner: Sequence[Moments], outer: Sequence[Moments]) -> Iterator[Moments]:
        if len(inner) == 1:
            yield merged(outer)
            return
        half = len(inner) // 2
        first, second = inner[:half], inner[half:]
        yield from of(first, [merged([*outer, *second])])
        yield from of(second, [merged([*outer, *first])])

    if len(parts) > 1:
        yield from of(parts, [])


def as_features(values: Any, name: str, least: int) -> Tensor:
    """Convert features [N, D] to a tensor: float32 as it is and halves as float32, else float64.

    Raises ValueError for another shape, fewer than ``least`` samples, NaN or infinity, and for what
    is no real number.
    """
    features = values.detach() if isinstance(values, Tensor) else _tensor_of(values, name)
    if features.is_complex():
        raise ValueError(f"{name} features must be real numbers, not {features.dtype}")
    is_narrow = features.is_floating_point() and features.itemsize <= 4
    features = features.to(torch.float32 if is_narrow else torch.float64)
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise ValueError(
            f"{name} features must be [N, D] with N >= {least} and D >= 1, not "
            f"{list(features.shape)}"
        )
    check_finite(features, f"{name} features")
    return features


def _tensor_of(values: Any, name: str) -> Tensor:
    """Convert an array of any byte order and strides; it shares memory where it can."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} features must be real numbers, not {array.dtype}")
    is_narrow = array.dtype.kind == "f" and array.itemsize <= 4
    if min(array.strides, default=0) < 0:
        array = array.copy()
    # writable: PyTorch warns of arrays that it could not write to
    return torch.from_numpy(np.require(array, "f4" if is_narrow else "f8", "W"))


def check_same_dimension(real: Tensor, generated: Tensor) -> None:
    """Raise ValueError unless features [N, D] and [M, D] have one D."""
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} dimensions and generated ones "
            f"{generated.shape[1]}: use one extractor for both"
        )


def whole_number(value: Any, name: str, least: int | None = None) -> int:
    """Return a number of any integer type as an int.

    Raises ValueError for other values, and for less than ``least``.
    """
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    number = None
    with suppress(TypeError):
        number = None if is_bool else operator.index(value)
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, not {shown(value)}")
    return number


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError, naming the first bad row, if ``values`` holds NaN or infinity."""
    for start in range(0, len(values), FEW):  # the check's own memory stays flat, too
        finite = torch.isfinite(values[start : start + FEW])
        if not finite.all():
            row = start + int((~finite).nonzero()[0, 0])
            raise ValueError(
                f"the {what} hold NaN or infinity (first in row {row}): remove the cause"
            )

"""Distances as pure functions: numpy arrays or tensors in, plain floats out."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from erk.method.arguments import require, shown
from metrics.statistics import (
    Moments,
    as_features,
    check_finite,
    check_same_dimension,
    whole_number,
)

ASYMMETRY = 1e-6  # largest |cov - cov^T| relative to the largest |cov|
NEGATIVE = 1e-5  # share of the largest eigenvalue below which a negative one is rounding
EPSILON = torch.finfo(torch.float64).eps
SEED = 2020  # torch-fidelity's, for shuffles and subsets
LARGE = 5000  # samples of the smallest subset that FD-infinity extrapolates from
FRECHET = "Fréchet distance"
ROWS = 1024  # samples gathered at a time


class HasMoments(Protocol):
    """Anything with a mean [D] and a covariance [D, D]: Moments, or Statistics of a reference."""

    @property
    def mean(self) -> Tensor: ...
    @property
    def cov(self) -> Tensor: ...


Gaussian = HasMoments | tuple[Any, Any]
"""Moments, or mean [D] and covariance [D, D]."""


def frechet_distance(real: Gaussian, generated: Gaussian, *, factor: Tensor | None = None) -> float:
    """Compute the Fréchet distance of two Gaussians, in float64 and also for singular covariances.

    |mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)): Dowson & Landau 1982; the FID of Heusel
    et al. 2017.

    Parameters
    ----------
    real, generated
        Moments, or (mean [D], cov [D, D]), arrays or tensors.
    factor
        ``covariance_factor(real.cov)`` if known, which saves work when many sets are compared with
        one reference.

    Raises
    ------
    ValueError
        Shapes that do not match, NaN, infinity, a matrix that is no covariance, or numbers so
        large that the distance overflows.
    """
    mean1, cov1 = _gaussian(real, "real")
    mean2, cov2 = (value.to(mean1.device) for value in _gaussian(generated, "generated"))
    if mean1.shape != mean2.shape:
        raise ValueError(
            f"the real mean has {len(mean1)} dimensions and the generated one {len(mean2)}: "
            "use one extractor for both"
        )
    if factor is None:
        factor = covariance_factor(cov1)
    elif getattr(factor, "ndim", 0) != 2 or len(factor) != len(mean1):
        require(isinstance(factor, Tensor), "factor", "covariance_factor(cov)", factor)
        raise ValueError(
            f"a factor of shape {list(factor.shape)} does not belong to a covariance of "
            f"{len(mean1)} dimensions: use covariance_factor(cov)"
        )
    trace_root = root_trace(factor.to(cov2), cov2)
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_root
    return max(_finite(float(distance), FRECHET), 0.0)  # equal inputs may round to -1e-13


def covariance_factor(cov: Any) -> Tensor:
    """Return a factor H [D, r] with H H^T = cov [D, D], float64; r is the rank if cov is singular.

    Raises ValueError for a matrix that is no covariance.
    """
    cov = _float64(cov)
    factor, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return factor
    factor, rounding = _pivoted_factor(cov), 10 * len(cov) * EPSILON * cov.abs().max()
    exact = (factor @ factor.T - cov).abs().max() <= rounding
    return factor if exact else _spectral_factor(cov)  # not exact: stored in float32, for instance


def _pivoted_factor(cov: Tensor) -> Tensor:
    """Factor by Cholesky with pivots: fast, and exact if cov is exact to float64 rounding."""
    lower, order, rank, _ = lapack.dpstrf(cov.cpu().numpy().T, lower=1)
    factor = torch.zeros_like(cov)
    factor[torch.from_numpy(order - 1).long()] = torch.from_numpy(lower).tril().to(cov.device)
    return factor[:, :rank]


def _spectral_factor(cov: Tensor) -> Tensor:
    """Factor by eigenvectors: negative eigenvalues from rounding do not spread."""
    values, vectors = torch.linalg.eigh(cov)
    values = _no_negative(values, values[-1].abs())
    kept = values > len(values) * EPSILON * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def root_trace(factor: Tensor, cov: Tensor) -> Tensor:
    """Return tr (cov H H^T)^(1/2), by the eigenvalues of the symmetric H^T cov H."""
    square = factor.shape[0] == factor.shape[1]
    if square and cov.device.type == "cpu" and not factor.triu(1).any():  # a Cholesky factor
        # LAPACK's product H^T cov H takes half the time of two: it knows what is symmetric and
        # what is 0. Its columns are our rows, so its upper triangles are our lower ones.
        product, _ = lapack.dsygst(cov.numpy().T, factor.numpy().T, itype=2, lower=0)
        symmetric = torch.from_numpy(product.T)
    else:
        symmetric = factor.T @ cov @ factor
    if not torch.isfinite(symmetric).all():
        _finite(float("inf"), FRECHET)
    if not len(symmetric):  # the real covariance is 0
        return cov.new_zeros(())
    # Rounding is that of both factors: their product is 0 where they span different directions.
    scale = factor.square().sum(1).max() * cov.abs().max()
    return _no_negative(torch.linalg.eigvalsh(symmetric, UPLO="L"), scale).sqrt().sum()


def _no_negative(eigenvalues: Tensor, scale: Tensor) -> Tensor:
    """Clamp rounding to 0 in ascending eigenvalues of a positive semi-definite matrix."""
    if eigenvalues[0] < -NEGATIVE * scale:
        raise ValueError("a covariance has negative eigenvalues: it is damaged, compute it again")
    return eigenvalues.clamp_min(0)


def fd_infinity(real: Gaussian, generated: Any, *, points: int = 15, seed: int = 0) -> float:
    """Extrapolate the Fréchet distance of generated features to infinitely many samples.

    Chong & Forsyth 2020, with dgm-eval's choices: FD of random subsets of evenly spaced sizes,
    the smallest 5000 (N / 10 if that is less) and the largest N; a straight line over 1 / size by
    least squares; its intercept, which may be negative.

    Parameters
    ----------
    real
        Moments or (mean [D], cov [D, D]).
    generated
        Features [N, D], N >= 20.
    points
        Number of subsets, at least 2.
    seed
        Seed of the subsets, which are drawn without replacement.

    Raises
    ------
    ValueError
        Fewer samples or points, and as `frechet_distance` does.
    """
    points, seed = whole_number(points, "points"), whole_number(seed, "seed")
    if points < 2:
        raise ValueError(f"a straight line needs at least 2 points, not {points}")
    features = as_features(generated, "generated", least=20)
    return extrapolated_distance(real, features, nested_subsets(len(features), points, seed))


def nested_subsets(n: int, points: int = 15, seed: int = 0) -> list[Tensor]:
    """Draw the subsets of n samples that FD-infinity extrapolates from, int64 indices each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = np.linspace(min(LARGE, n // 10), n, points).astype(int)
    return [torch.randperm(n, generator=generator)[:size] for size in sizes]


def extrapolated_distance(real: Gaussian, features: Tensor, subsets: Sequence[Tensor]) -> float:
    """Fit FD of the subsets of features [N, D] over 1 / size; return the intercept."""
    factor = covariance_factor(_gaussian(real, "real")[1])
    counts, distances = [], []
    for subset in subsets:
        moments = Moments(features.shape[1], "cpu" if features.is_mps else features.device)
        for rows in subset.split(ROWS):
            moments.add(features[rows.to(features.device)])
        counts.append(moments.n)
        distances.append(frechet_distance(real, moments, factor=factor))
    return float(np.polynomial.Polynomial.fit(1 / np.array(counts), distances, deg=1)(0))


def kernel_distance(
    *, real: Any, generated: Any, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Compute the kernel distance (KID, Bińkowski et al. 2018) of two sets of features.

    The unbiased squared MMD with the kernel (x.y / D + 1)^3 over random subsets, drawn as
    torch-fidelity draws them, but computed in float64. Values a little below 0 are valid.

    Parameters
    ----------
    real
        Features [N, D].
    generated
        Features [M, D].
    subsets
        Number of subsets.
    subset_size
        Samples of each set in a subset.

    Returns
    -------
    tuple[float, float]
        Mean and population standard deviation over the subsets.

    Raises
    ------
    ValueError
        A set smaller than ``subset_size``, different D, NaN, infinity or overflow.
    """
    subsets = whole_number(subsets, "subsets")
    subset_size = whole_number(subset_size, "subset_size")
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            f"a kernel distance needs at least 1 subset of 2 samples, not {subsets} of "
            f"{subset_size}"
        )
    real = as_features(real, "real", least=subset_size)
    generated = as_features(generated, "generated", least=subset_size)
    check_same_dimension(real, generated)
    draws = kernel_draws(len(real), len(generated), subsets, subset_size)
    return kernel_distances(real, generated, draws)


def kernel_draws(n: int, m: int, subsets: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Draw pairs of index sets of n real and m generated samples, as torch-fidelity does."""
    random = np.random.RandomState(SEED)
    pairs = []
    for _ in range(subsets):
        generated = random.choice(m, size, replace=False)  # the order of torch-fidelity's draws
        real = random.choice(n, size, replace=False)
        pairs.append((torch.from_numpy(real), torch.from_numpy(generated)))
    return pairs


def kernel_distances(
    real: Tensor, generated: Tensor, draws: Sequence[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Return mean and population std of the squared MMD over pairs of index sets."""
    values = []
    for a, b in draws:
        x = _float64(generated[b.to(generated.device)])
        y = _float64(real[a.to(real.device)])
        values.append(_finite(_squared_mmd(x, y.to(x.device)), "kernel distance"))
    return float(np.mean(values)), float(np.std(values))


def inception_score(
    logits: Any, splits: int = 10, shuffle: bool = True, split_size: int | None = None
) -> tuple[float, float]:
    """Compute the Inception score (Salimans et al. 2016).

    Each part of the samples scores exp(mean KL(p(y|x) || p(y))), in float64. The defaults are
    torch-fidelity's rule; ADM's is ``shuffle=False, split_size=5000``.

    Parameters
    ----------
    logits
        Logits of a classifier, [N, K].
    splits
        Number of parts.
    shuffle
        Whether samples are shuffled first, by RandomState(2020).
    split_size
        Samples per part, of which the last may have fewer; ``splits`` is then not used.

    Returns
    -------
    tuple[float, float]
        Mean and population standard deviation over the parts.

    Raises
    ------
    ValueError
        NaN, infinity or overflow, or fewer samples than parts.
    """
    logits = _float64(logits)
    splits = whole_number(splits, "splits")
    if split_size is not None:
        split_size = whole_number(split_size, "split_size")
    least = splits if split_size is None else min(split_size, 1)
    if logits.ndim != 2 or not logits.shape[1] or not 1 <= least <= len(logits):
        parts = f"{splits} splits" if split_size is None else f"parts of {split_size}"
        raise ValueError(
            f"an Inception score in {parts} needs logits [N, K] with N >= {max(least, 1)} and "
            f"K >= 1, and at least 1 split and part, not {list(logits.shape)}"
        )
    check_finite(logits, "logits")
    order = sample_order(len(logits), shuffle).to(logits.device)
    return split_scores(logits.log_softmax(1)[order], splits, split_size)


def sample_order(n: int, shuffle: bool) -> Tensor:
    """Return the order of n samples, int64 [n]; shuffled as torch-fidelity shuffles."""
    order = np.random.RandomState(SEED).permutation(n) if shuffle else np.arange(n)
    return torch.from_numpy(order)


def split_scores(log_p: Tensor, splits: int, split_size: int | None) -> tuple[float, float]:
    """Return mean and population std of the scores of the parts of log p(y|x) [N, K]."""
    if split_size is None:
        parts = log_p.tensor_split([i * len(log_p) // splits for i in range(1, splits)])
    else:
        parts = log_p.split(split_size)
    scores = [_finite(_split_score(part), "Inception score") for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _split_score(log_p: Tensor) -> float:
    log_q = log_p.logsumexp(0) - np.log(len(log_p))  # log of the mean p, without underflow
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().exp().item()


def _finite(value: float, what: str) -> float:
    """Return the value. Raises ValueError if it exceeded float64."""
    if not math.isfinite(value):
        raise ValueError(f"the {what} overflows: the features are too large, scale them down")
    return value


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimator of MMD^2 from x [n, D] and y [m, D]."""
    within = sum(
        (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
        for kernel in (_kernel(x, x), _kernel(y, y))
    )
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _has_moments(values: Any) -> TypeGuard[HasMoments]:
    return hasattr(values, "cov") and not isinstance(values, Tensor)  # which has a method cov


def _gaussian(values: Gaussian, name: str) -> tuple[Tensor, Tensor]:
    pair: Any = (values.mean, values.cov) if _has_moments(values) else values
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    expected = "Moments, or (mean, covariance): of features [N, D], Moments(D).add(features)"
    require(is_pair, name, expected, values)
    mean, cov = map(_float64, pair)
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"a Fréchet distance needs the {name} mean [D] and covariance [D, D], not "
            f"{list(mean.shape)} and {list(cov.shape)}"
        )
    check_finite(mean, f"{name} means")
    check_finite(cov, f"{name} covariances")
    cov = _without_rounding(mean, cov.to(mean.device))
    largest = cov.abs().max()
    if (cov - cov.T).abs().max() > ASYMMETRY * largest:  # half of it would not be seen
        raise ValueError(f"the {name} covariance is not symmetric: it is none, compute it again")
    _no_negative(cov.diagonal().sort().values, largest)  # also where the other one is 0
    return mean, cov


def _without_rounding(mean: Tensor, cov: Tensor) -> Tensor:
    """Return 0 for the covariance of identical samples from sums of products, else ``cov``.

    Such sums, E[x x^T] - mean mean^T, leave rounding of the second moment, which is no covariance:
    it has negative eigenvalues. One that has none is small but sound.
    """
    rounding = 10 * len(cov) * EPSILON * mean.square().max()
    if cov.abs().max() > rounding:
        return cov
    values = torch.linalg.eigvalsh(cov)
    return torch.zeros_like(cov) if values[0] < -NEGATIVE * values[-1].abs() else cov


def _float64(values: Any) -> Tensor:
    """Return real numbers as float64. Raises ValueError for complex ones: they would be cut."""
    if values.is_complex() if isinstance(values, Tensor) else np.iscomplexobj(values):
        raise ValueError("a distance needs real numbers, not complex ones: give their real part")
    if isinstance(values, Tensor):  # Apple's GPU has no float64
        return values.detach().to("cpu" if values.device.type == "mps" else values.device).double()
    try:
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"a distance needs an array of numbers, not {shown(values)}") from None

"""The distances as pure functions: numpy arrays or tensors in, plain floats out."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.statistics import check_finite

TILE = 2048  # distances live in TILE x TILE blocks, so memory does not grow with N
NEGATIVE = 1e-5  # share of the largest eigenvalue below which a negative one is rounding


def frechet_distance(mu1: Any, cov1: Any, mu2: Any, cov2: Any) -> float:
    """Fréchet distance of two Gaussians, |mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^1/2).

    Dowson & Landau 1982; the FID of Heusel et al. 2017. mu [D], cov [D, D], computed in float64;
    also exact where a covariance is rank-deficient. Raises ValueError for shapes that do not
    match, NaN, infinity or a matrix that is no covariance.
    """
    mu1, cov1, mu2, cov2 = (_float64(value) for value in (mu1, cov1, mu2, cov2))
    for mu, cov in ((mu1, cov1), (mu2, cov2)):
        if mu.shape != mu1.shape or mu.ndim != 1 or cov.shape != (len(mu), len(mu)):
            raise ValueError(
                "frechet_distance needs two means [D] and two covariances [D, D] of one D, not "
                f"{[list(value.shape) for value in (mu1, cov1, mu2, cov2)]}"
            )
        check_finite(mu, "means")
        check_finite(cov, "covariances")
    trace_root = root_trace(covariance_factor(cov2), cov1)
    distance = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_root
    return max(float(distance), 0.0)  # equal inputs may round to -1e-13


def covariance_factor(cov: Tensor) -> Tensor:
    """A factor H [D, r] with H H^T = cov [D, D], float64; r is the rank if cov is singular."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(cov)
    values = _no_negative(values)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def root_trace(factor: Tensor, cov: Tensor) -> Tensor:
    """tr (cov H H^T)^1/2: the eigenvalues of cov H H^T are those of the symmetric H^T cov H."""
    return _no_negative(torch.linalg.eigvalsh(factor.T @ cov @ factor)).sqrt().sum()


def precision_recall(*, real: Any, generated: Any, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features [N, D] and [M, D].

    The ball of a sample reaches to the k-th nearest other sample of its own set. Precision is
    the share of generated samples inside a real ball (<=), recall the share of real samples
    inside a generated ball. Exact, in the dtype of the features (float32 or float64), with
    memory that does not depend on N. Raises ValueError for NaN, fewer than k + 1 samples or
    different D.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    real, generated = _features(real, "real", k), _features(generated, "generated", k)
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} dimensions and generated ones "
            f"{generated.shape[1]}: use one extractor for both"
        )
    dtype = torch.promote_types(real.dtype, generated.dtype)
    real, generated = real.to(dtype), generated.to(real.device, dtype)
    centre = real.mean(0)  # distances do not change, but less of them cancels
    real, generated = real - centre, generated - centre
    real_radii, generated_radii = squared_radii(real, k), squared_radii(generated, k)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for g in _tiles(generated):
        for r in _tiles(real):
            distances = squared_distances(generated[g], real[r])
            precise[g] |= (distances <= real_radii[r]).any(1)
            recalled[r] |= (distances <= generated_radii[g, None]).any(0)
    return precise.double().mean().item(), recalled.double().mean().item()


def squared_radii(features: Tensor, k: int) -> Tensor:
    """Squared distance [N] from every sample to its k-th nearest other sample."""
    nearest = features.new_full((len(features), k + 1), torch.inf)
    for i in _tiles(features):
        for j in _tiles(features):
            if j.start < i.start:
                continue  # symmetric: the block was used when its mirror image was computed
            block = squared_distances(features[i], features[j])
            if i == j:
                block.fill_diagonal_(0)  # a sample is exactly at distance 0 from itself
            nearest[i] = _smallest(nearest[i], block, k)
            if i != j:
                nearest[j] = _smallest(nearest[j], block.T, k)
    return nearest.amax(1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances [A, B] of rows; what is below rounding counts as 0."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    distances = torch.addmm(norms, a, b.T, alpha=-2)
    rounding = torch.finfo(a.dtype).eps * a.shape[1] ** 0.5
    return distances.masked_fill_(distances <= rounding * norms, 0)  # copies touch exactly


def inception_score(logits: Any, splits: int = 10) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016) of logits [N, K]: mean and population std.

    torch-fidelity's rule: samples are shuffled by RandomState(2020), cut into ``splits`` parts,
    and each part scores exp(mean KL(p(y|x) || p(y))), in float64. Raises ValueError for NaN
    or fewer samples than splits.
    """
    logits = _float64(logits)
    if logits.ndim != 2 or splits < 1 or len(logits) < splits:
        raise ValueError(
            f"an inception score in {splits} splits needs logits [N, K] with N >= {splits}, "
            f"not {list(logits.shape)}"
        )
    check_finite(logits, "logits")
    order = np.random.RandomState(2020).permutation(len(logits))
    log_p = logits[torch.from_numpy(order).to(logits.device)].log_softmax(1)
    bounds = [i * len(log_p) // splits for i in range(splits + 1)]
    parts = [log_p[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    scores = [_split_score(part) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _split_score(log_p: Tensor) -> float:
    log_q = log_p.logsumexp(0) - np.log(len(log_p))  # log of the mean p, without underflow
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().exp().item()


def _smallest(nearest: Tensor, block: Tensor, k: int) -> Tensor:
    candidates = torch.cat([nearest, block], 1)
    return candidates.topk(k + 1, dim=1, largest=False, sorted=False).values


def _tiles(features: Tensor) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, len(features), TILE))


def _no_negative(eigenvalues: Tensor) -> Tensor:
    """Clamp rounding to 0 in ascending eigenvalues of a positive semi-definite matrix."""
    if len(eigenvalues) and eigenvalues[0] < -NEGATIVE * eigenvalues[-1].abs():
        raise ValueError("a covariance has negative eigenvalues: it is damaged, compute it again")
    return eigenvalues.clamp_min(0)


def _features(values: Any, name: str, k: int) -> Tensor:
    features = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if not features.is_floating_point() or features.dtype.itemsize < 4:
        features = features.float()
    if features.ndim != 2 or len(features) < k + 1:
        raise ValueError(
            f"precision and recall with k = {k} need {name} features [N, D] with N >= {k + 1}, "
            f"not {list(features.shape)}"
        )
    check_finite(features, f"{name} features")
    return features


def _float64(values: Any) -> Tensor:
    if isinstance(values, Tensor):  # Apple's GPU has no float64
        return values.detach().to("cpu" if values.device.type == "mps" else values.device).double()
    return torch.from_numpy(np.array(values, dtype=np.float64))

"""The 2-D toy: a tree of Gaussians with closed-form score and Hessian.

The distribution is that of Autoguidance's toy example (Karras et al. 2024, "Guiding a Diffusion
Model with a Bad Version of Itself"), on which the paper studies stiffness (Sec. 4.1, App. B.1).
All in float64: in the gaps between branches log p falls below -100, where float32 gives 0/0.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from erk.analysis.oracles import Dominant, dominant_of
from erk.method.drift import Denoiser
from erk.method.point import Drift, Point

DEPTHS = 7  # generations of branches: 2^7 - 1 = 127 per class
PER_BRANCH = 8  # Gaussians along a branch
SCALE = np.array([1.3136, 1.3844])
ORIGIN = np.array([0.0030, 0.0325])
ANGLES = {"A": math.pi / 4, "B": 5 * math.pi / 4}  # of the trunks, in the order of generation
SEED = 2
VIEW = ((-0.9, 1.5), (-0.9, 1.5))  # axis limits of the figures, 0.3 +- 1.2
ROWS = 64  # states per block: the table of all components, 0.5 MB, fits the CPU cache


class Mixture(NamedTuple):
    """p(x) = sum_k w_k N(x; mu_k, Sigma_k), in float64."""

    log_weights: Tensor  # [K], the weights sum to 1
    means: Tensor  # [K, 2]
    covariances: Tensor  # [K, 2, 2]
    depth: Tensor  # generation of the branch, 0: the trunk   [K] int64
    label: Tensor  # index of the class in ANGLES             [K] int64


class Branch(NamedTuple):
    """One straight segment of the tree, before scaling."""

    depth: int
    start: np.ndarray  # [2]
    direction: np.ndarray  # unit vector [2]
    length: float


def tree(classes: str = "A") -> Mixture:
    """Build the distribution of class "A", "B" or both, "AB": 1016 components per class.

    Parameters are rounded to float32, as in the original. Raises ValueError for another class.
    """
    unknown = set(classes) - set(ANGLES)
    if unknown or not classes:
        raise ValueError(f"the toy's classes are A, B and AB, not '{classes}'.")
    draw, parts = np.random.RandomState(SEED), []
    for label, (name, angle) in enumerate(ANGLES.items()):
        branches = list(_grow(draw, 0, ORIGIN, angle))  # every class: they share a random stream
        if name in classes:
            parts += [(*_gaussians(branch), branch.depth, label) for branch in branches]
    weights, means, covariances, depth, label = zip(*parts, strict=True)
    w = _rounded(np.concatenate(weights))
    return Mixture(
        (w / w.sum()).log(),
        _rounded(np.concatenate(means)),
        _rounded(np.concatenate(covariances)),
        torch.tensor(depth).repeat_interleave(PER_BRANCH),
        torch.tensor(label).repeat_interleave(PER_BRANCH),
    )


def _grow(
    draw: np.random.RandomState, depth: int, start: np.ndarray, angle: float
) -> Iterator[Branch]:
    """Yield a branch and all its descendants, depth first."""
    direction = np.array([np.cos(angle), np.sin(angle)])
    length = 0.292 * 0.8**depth * (draw.randn() * 0.2 + 1)
    yield Branch(depth, start, direction, length)
    for sign in (1, -1):
        turn = sign * 0.7**depth * (draw.randn() * 0.2 + 1)  # drawn at the last depth as well
        if depth + 1 < DEPTHS:
            yield from _grow(draw, depth + 1, start + direction * length, angle + turn)


def _gaussians(branch: Branch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights [8], means [8, 2] and covariances [8, 2, 2] of one branch."""
    depth, start, direction, length = branch
    thickness = 0.2 * 0.8**depth / length
    size = SCALE * length * 0.06
    along = np.outer(direction, direction)
    covariance = (along + (np.eye(2) - along) * thickness**2) * np.outer(size, size)
    fractions = np.linspace(0.07, 0.93, PER_BRANCH)
    means = (start + np.outer(fractions, direction * length)) * SCALE
    weights = np.full(PER_BRANCH, length * 0.5**depth)
    return weights, means, np.broadcast_to(covariance, (PER_BRANCH, 2, 2))


def _rounded(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).double()


def draw_samples(mixture: Mixture, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw exact samples [count, 2] float64 and their classes [count] int64."""
    k = torch.multinomial(mixture.log_weights.exp(), count, True, generator=generator)
    noise = torch.randn(count, 2, 1, generator=generator, dtype=torch.float64)
    spread = torch.linalg.cholesky(mixture.covariances)[k] @ noise
    return mixture.means[k] + spread[..., 0], mixture.label[k]


def _at_level(mixture: Mixture, sigma: Tensor) -> Tensor:
    """Return the mixture at noise level sigma [...] as polynomials in x: [..., 6, K].

    log(w_k N(x; mu_k, P_k^-1)) = c_k + b_k'x - x'P_k x / 2 with P_k = (Sigma_k + sigma^2 I)^-1 and
    b_k = P_k mu_k; the six rows are c, b_x, b_y, P_xx, P_xy, P_yy. The table of all components at
    all states is then one matrix product, three times as fast as element by element.
    """
    variance = sigma.square().unsqueeze(-1)
    xx, yy = (mixture.covariances[:, i, i] + variance for i in (0, 1))
    xy = mixture.covariances[:, 0, 1].expand_as(xx)
    det = xx * yy - xy.square()
    p, q, r = yy / det, -xy / det, xx / det
    mx, my = mixture.means.T
    bx, by = p * mx + q * my, q * mx + r * my
    square = bx * mx + by * my  # mu'P mu
    c = mixture.log_weights - 0.5 * (square + det.log()) - math.log(2 * math.pi)
    return torch.stack([c, bx, by, p, q, r], -2)


def _log_terms(level: Tensor, x: Tensor) -> Tensor:
    """Compute the log of every weighted component at every state: [..., n, 2] -> [..., n, K]."""
    h, v = x.unbind(-1)
    features = [torch.ones_like(h), h, v, -0.5 * h * h, -h * v, -0.5 * v * v]
    return torch.stack(features, -1) @ level


def _log_density(level: Tensor, x: Tensor) -> Tensor:
    return _log_terms(level, x).logsumexp(-1)


def _score(level: Tensor, x: Tensor) -> Tensor:
    """Compute sum_k r_k (b_k - P_k x), with r_k the posterior of component k."""
    shares = _log_terms(level, x).softmax(-1)
    bx, by, p, q, r = (shares @ level[..., 1:, :].mT).unbind(-1)
    h, v = x.unbind(-1)
    return torch.stack([bx - p * h - q * v, by - q * h - r * v], -1)


def _hessian(level: Tensor, x: Tensor) -> Tensor:
    """Compute Cov_r[b_k - P_k x] - sum_k r_k P_k, [..., n, 2, 2]."""
    shares = _log_terms(level, x).softmax(-1)
    _, bx, by, p, q, r = (row.unsqueeze(-2) for row in level.unbind(-2))
    h, v = x[..., :1], x[..., 1:]
    gx, gy = bx - p * h - q * v, by - q * h - r * v
    gx, gy = (g - (shares * g).sum(-1, keepdim=True) for g in (gx, gy))
    xx, xy, yy = (
        (shares * (product - precision)).sum(-1)
        for product, precision in ((gx * gx, p), (gx * gy, q), (gy * gy, r))
    )
    return torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2))


def _in_blocks(
    function: Callable[[Tensor, Tensor], Tensor], mixture: Mixture, x: Tensor, sigma: Tensor | float
) -> Tensor:
    """Evaluate `function` at x [B, 2], sigma [] or [B], in blocks of ROWS states."""
    x, sigma = x.double(), torch.as_tensor(sigma, dtype=torch.float64)
    if sigma.ndim == 0:
        level = _at_level(mixture, sigma)
        return torch.cat([function(level, rows) for rows in x.split(ROWS)])
    pairs = zip(x.split(ROWS), sigma.split(ROWS), strict=True)  # a level for each row
    return torch.cat([function(_at_level(mixture, s), xs[:, None])[:, 0] for xs, s in pairs])


def log_density(mixture: Mixture, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute log p(x; sigma), [B] for x [B, 2]; sigma [] or [B]."""
    return _in_blocks(_log_density, mixture, x, sigma)


def score(mixture: Mixture, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute grad log p(x; sigma), [B, 2] for x [B, 2]; sigma [] or [B]."""
    return _in_blocks(_score, mixture, x, sigma)


def hessian(mixture: Mixture, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute grad^2 log p(x; sigma), [B, 2, 2] for x [B, 2]; sigma [] or [B]."""
    return _in_blocks(_hessian, mixture, x, sigma)


def drift(mixture: Mixture) -> Drift:
    """Return f(x; sigma) = -sigma grad log p (Eq. 1) in float64, for solvers and `steps`."""

    def field(x: Tensor, sigma: Tensor) -> Point:
        return Point(x, -sigma * score(mixture, x, sigma), sigma)

    return field


def denoiser(mixture: Mixture) -> Denoiser:
    """Return D(x; sigma) = x + sigma^2 grad log p for `erk.sample`, in x's dtype.

    Labels are ignored. `erk.sample` shows networks float32 states; `drift` keeps float64.
    """

    def denoise(x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        square = sigma.square().unsqueeze(-1) if sigma.ndim else sigma.square()
        return (x + square * score(mixture, x, sigma)).to(x.dtype)

    return denoise


def dominant(mixture: Mixture, x: Tensor, sigma: Tensor | float) -> Dominant:
    """Compute stiffness and dominant eigenvector of df/dx = -sigma grad^2 log p in closed form."""
    return dominant_of(-sigma * hessian(mixture, x, sigma), -sigma * score(mixture, x, sigma))


class ExactToy:
    """The exact denoiser of class A from sigma 5 down, with the attributes of a model."""

    sample_shape, label_dim, device = (2,), 0, torch.device("cpu")
    sigma_min, sigma_max = 0.002, 5.0
    name, licence = "the exact toy, class A", "Apache-2.0"

    def __init__(self) -> None:
        mixture = tree("A")
        content = b"".join(part.numpy().tobytes() for part in mixture)
        self.sha256, self._denoise = hashlib.sha256(content).hexdigest(), denoiser(mixture)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return D(x; sigma), [B, 2] as x."""
        return self._denoise(x, sigma, labels)

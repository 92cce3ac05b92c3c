"""Our Fréchet distance against scipy's sqrtm (EDM2) and numpy's eigvals (torch-fidelity).

    python -m scripts.bench.frechet              # minutes on one core
    python -m scripts.bench.frechet --dim 1024
"""

import functools
import warnings

import click
import numpy as np
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_statistics_to_metric

from metrics.distances import covariance_factor, frechet_distance
from scripts.bench.paired import Row, Setup, bench, in_turns, summary

Gaussian = tuple[np.ndarray, np.ndarray]


def ours(a: Gaussian, b: Gaussian) -> float:
    """Compute the distance without a precomputed factor of the reference."""
    return frechet_distance(real=a, generated=b)


def with_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """Evaluate the definition of the Fréchet distance."""
    with warnings.catch_warnings():  # scipy warns of every singular product
        warnings.simplefilter("ignore")
        root = sqrtm(a[1] @ b[1])
    mean = np.square(a[0] - b[0]).sum()
    return float(np.real(mean + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root)))


def with_eigvals(a: Gaussian, b: Gaussian) -> float:
    """Call torch-fidelity's function."""
    statistics = ({"mu": mean, "sigma": cov} for mean, cov in (a, b))
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


CODES = {"ours": ours, "numpy eigvals": with_eigvals, "scipy sqrtm": with_sqrtm}
FLOP = {
    "ours": 1 / 3 + 1 + 4 / 3,  # Cholesky, H^T S H by symmetry, eigenvalues of a symmetric matrix
    "ours, reference known": 1 + 4 / 3,
    "numpy eigvals": 2 + 10,  # a product, eigenvalues of any matrix
    "scipy sqrtm": 2 + 25 + 1 / 3 + 4,  # a product, Schur's form, its root, two products back
}
"""Floating-point operations in units of D^3, counted as Golub & Van Loan do."""


def case(dim: int, rank: int) -> tuple[Gaussian, Gaussian, float]:
    """Return two Gaussians with covariances from `rank` samples, and their distance.

    With cov2 = T cov1 T the product is (cov1 T)^2, and the trace of its root that of cov1 T.
    """
    rng = np.random.default_rng(0)
    half, other = rng.normal(size=(dim, rank)), rng.normal(size=(dim, dim))
    cov = half @ half.T / rank
    t = other @ other.T / dim + 0.1 * np.eye(dim)
    mean = rng.normal(size=dim)
    other_cov = t @ cov @ t
    exact = np.square(mean).sum() + np.trace(cov) + np.trace(other_cov) - 2 * np.sum(t * cov)
    return (np.zeros(dim), cov), (mean, (other_cov + other_cov.T) / 2), float(exact)


def compare(setup: Setup, dim: int, rank: int) -> list[Row]:
    """Return one row per code."""
    a, b, exact = case(dim, rank)
    codes = {name: functools.partial(code, a, b) for name, code in CODES.items()}
    factor = covariance_factor(a[1])
    codes["ours, reference known"] = functools.partial(
        frechet_distance, real=a, generated=b, factor=factor
    )
    runs = in_turns(codes, setup.rounds)
    gflop = {name: count * dim**3 / 1e9 for name, count in FLOP.items()}
    return [
        {"D": dim, "rank": min(rank, dim), "code": name}
        | times
        | {"GFLOP": gflop[name], "GFLOP/s": gflop[name] / times["seconds"]}
        | {"MB in": 2 * 8 * dim * (dim + 1) / 1e6}
        | {"relative error": abs(runs[name].value / exact - 1)}
        for name, times in summary(runs).items()
    ]


@bench(
    click.option(
        "--dim",
        "dims",
        multiple=True,
        default=(1024, 2048),
        help="Dimensions of the features; may be repeated.",
    ),
    packages=["scipy", "torch-fidelity"],
)
def main(setup: Setup, dims: tuple[int, ...]) -> list[Row]:
    """Time the Fréchet distance at full rank and at rank D / 2, where the answer is known."""
    return [row for d in dims for rank in (2 * d, d // 2) for row in compare(setup, d, rank)]


if __name__ == "__main__":
    main()

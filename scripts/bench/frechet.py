"""Our Fréchet distance against scipy's sqrtm (EDM2's way) and numpy's eigvals (torch-fidelity's).

    python -m scripts.bench.frechet              # minutes on one core
    python -m scripts.bench.frechet --dim 1024

Writes results/bench/frechet.json and .md.
"""

import functools
import warnings
from pathlib import Path

import click
import numpy as np
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_statistics_to_metric

from erk.commands.cli import CONTEXT, clean_exit
from metrics.distances import covariance_factor, frechet_distance
from scripts.bench.paired import OUT, ROUNDS, THREADS, Row, in_turns, report, summary, use_threads

Gaussian = tuple[np.ndarray, np.ndarray]


def ours(a: Gaussian, b: Gaussian) -> float:
    """Without a factor known from before."""
    return frechet_distance(real=a, generated=b)


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The Fréchet distance by its definition."""
    with warnings.catch_warnings():  # scipy warns of every singular product
        warnings.simplefilter("ignore")
        root = sqrtm(a[1] @ b[1])
    mean = np.square(a[0] - b[0]).sum()
    return float(np.real(mean + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root)))


def by_eigvals(a: Gaussian, b: Gaussian) -> float:
    """torch-fidelity's own function."""
    statistics = ({"mu": mean, "sigma": cov} for mean, cov in (a, b))
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


CODES = {"ours": ours, "numpy eigvals": by_eigvals, "scipy sqrtm": by_sqrtm}
FLOP = {
    "ours": 1 / 3 + 1 + 4 / 3,  # Cholesky, H^T S H by symmetry, eigenvalues of a symmetric matrix
    "ours, reference known": 1 + 4 / 3,
    "numpy eigvals": 2 + 10,  # a product, eigenvalues of any matrix
    "scipy sqrtm": 2 + 25 + 1 / 3 + 4,  # a product, Schur's form, its root, two products back
}
"""Floating-point operations in units of D^3, counted as Golub & Van Loan do."""


def case(dim: int, rank: int) -> tuple[Gaussian, Gaussian, float]:
    """Two Gaussians whose covariances come from ``rank`` samples, and their distance.

    With cov2 = T cov1 T the product is (cov1 T)^2, and the trace of its root that of cov1 T.
    """
    rng = np.random.default_rng(0)
    half, other = rng.normal(size=(dim, rank)), rng.normal(size=(dim, dim))
    cov = half @ half.T / rank
    t = other @ other.T / dim + 0.1 * np.eye(dim)
    mean = rng.normal(size=dim)
    image = t @ cov @ t
    exact = np.square(mean).sum() + np.trace(cov) + np.trace(image) - 2 * np.sum(t * cov)
    return (np.zeros(dim), cov), (mean, (image + image.T) / 2), float(exact)


def compare(dim: int, rank: int, rounds: int) -> list[Row]:
    """One row per code."""
    a, b, exact = case(dim, rank)
    codes = {name: functools.partial(code, a, b) for name, code in CODES.items()}
    factor = covariance_factor(a[1])
    codes["ours, reference known"] = functools.partial(
        frechet_distance, real=a, generated=b, factor=factor
    )
    runs = in_turns(codes, rounds)
    gflop = {name: count * dim**3 / 1e9 for name, count in FLOP.items()}
    return [
        {"D": dim, "rank": min(rank, dim), "code": name}
        | figures
        | {"GFLOP": gflop[name], "GFLOP/s": gflop[name] / figures["seconds"]}
        | {"MB in": 2 * 8 * dim * (dim + 1) / 1e6}
        | {"relative error": abs(runs[name].value / exact - 1)}
        for name, figures in summary(runs).items()
    ]


@click.command(context_settings=CONTEXT)
@click.option("--dim", "dims", multiple=True, default=(1024, 2048), help="Dimensions; may repeat.")
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(dims: tuple[int, ...], rounds: int, threads: int, out: Path) -> None:
    """Time the Fréchet distance at full rank and at rank D / 2, where the answer is known."""
    use_threads(threads)
    rows = [row for d in dims for rank in (2 * d, d // 2) for row in compare(d, rank, rounds)]
    report("frechet", rows, ["scipy", "torch-fidelity"], out)


if __name__ == "__main__":
    main()

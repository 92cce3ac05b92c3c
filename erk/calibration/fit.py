"""Coefficients of a correction, fitted to a network step by step along the reference path.

After every step the state is compared with the reference solution from the same noise. Least
squares over all samples and their components gives the multiples of a few directions that bring
the states nearest to it. The next step starts from the corrected state, so later coefficients
also correct what earlier steps left.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.calibration.problem import Problem
from erk.method.corrections import DIRECTIONS, REACH, Correction
from erk.method.drift import check_finite
from erk.method.point import Point, to_double

USUAL = ("embedded", "drift", "change", "bend", "stiff")
"""The directions of a correction unless others are given (docs/beyond.md)."""
CUTOFF = 1e-6  # relative size of the combinations of directions that carry no information
ROUNDING = 1e-5  # of Euler's step: a direction no longer than this is rounding noise, so 0


class ReferenceBatch(NamedTuple):
    """Samples to fit to."""

    noise: Tensor  # unit variance                                    [B, ...]
    labels: Tensor | None
    path: Sequence[Tensor]  # reference solution at each noise level   N + 1 of [B, ...]


class Fit(NamedTuple):
    """A fitted correction."""

    correction: Correction
    explained: tuple[float, ...]  # share of the squared error removed by each step's weights, [N]


@torch.no_grad()
def fit(problem: Problem, batches: Sequence[ReferenceBatch], directions: Sequence[str]) -> Fit:
    """Fit a correction of the problem's solver and schedule to reference paths.

    Networks are evaluated one batch at a time. Every sample's state and solver memory stay on the
    network's device between steps. Deterministic.

    Parameters
    ----------
    problem : Problem
        Networks and the plain solver; its `draw` is not used.
    batches : sequence of ReferenceBatch
        Noise, labels and reference paths at the problem's noise levels.
    directions : sequence of str
        Names in `erk.method.corrections.DIRECTIONS`.

    Raises
    ------
    NonFiniteError
        If a network produces NaN or infinity.
    """
    settings, sigmas = problem.settings, problem.sigmas
    levels = sigmas[sigmas > 0]
    solver = settings.solver_for(sigmas, problem.model)
    drifts = [problem.drift(batch.labels) for batch in batches]
    states = [batch.noise.to(settings.dtype) * sigmas[0] for batch in batches]
    memories: list[Any] = [None] * len(batches)
    previous: list[tuple[Point, ...]] = [()] * len(batches)
    weights, explained = [], []
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        equations, rows = NormalEquations(len(directions)), []
        for j, (drift, x, memory) in enumerate(zip(drifts, states, memories, strict=True)):
            step = solver(drift, x, sigma, sigma_next, memory)
            step = step._replace(sigma_next=sigma_next, index=i)
            vectors = torch.stack([DIRECTIONS[name](step, previous[j]) for name in directions])
            for values in (step.x, vectors.transpose(0, 1)):
                check_finite(values, i, sigma, drift.in_half)
            target = batches[j].path[i + 1].to(x) - step.x
            equations.add(vectors, target, step.length * step.start.f)
            rows.append((step, vectors))
        row, share = equations.solve()
        weights.append(tuple(row))
        explained.append(share)
        for j, (step, vectors) in enumerate(rows):
            x = step.x
            for weight, vector in zip(row, vectors, strict=True):
                x = x + weight * vector if weight else x
            states[j], memories[j] = x, step.memory
            previous[j] = (step.start, *previous[j])[:REACH]
    correction = Correction(tuple(levels.tolist()), tuple(directions), tuple(weights))
    return Fit(correction, tuple(explained))


class NormalEquations:
    """Normal equations of one step, summed over batches in float64."""

    def __init__(self, k: int) -> None:
        self.gram = torch.zeros(k, k, dtype=torch.float64)
        self.right = torch.zeros(k, dtype=torch.float64)
        self.size = torch.zeros((), dtype=torch.float64)
        self.move = torch.zeros((), dtype=torch.float64)

    def add(self, vectors: Tensor, target: Tensor, move: Tensor) -> None:
        """Add a batch: vectors [K, B, ...], the sum they should give and Euler's step, [B, ...]."""
        a, b = to_double(vectors.flatten(1)), to_double(target.flatten())
        self.gram += (a @ a.T).cpu()
        self.right += (a @ b).cpu()
        self.size += (b @ b).cpu()
        self.move += to_double(move).square().sum().cpu()

    def solve(self) -> tuple[list[float], float]:
        """Return the weights [K] and the share of the squared target that they explain."""
        sizes = self.gram.diagonal()
        scale = torch.where(sizes > ROUNDING**2 * self.move, sizes.rsqrt(), 0.0)
        inverse = torch.linalg.pinv(scale * self.gram * scale[:, None], rtol=CUTOFF, hermitian=True)
        weights = scale * (inverse @ (scale * self.right))
        removed = weights @ self.right
        return weights.tolist(), (removed / self.size).item() if self.size > 0 else 0.0

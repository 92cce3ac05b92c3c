"""Coefficients of a correction, fitted to a network step by step along the reference path.

After every step the state is compared with the reference solution from the same noise. Least
squares over all samples and their components gives the multiples of a few directions that bring
the states nearest to it. The next step starts from the corrected state, so later coefficients
also correct what earlier steps left.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.calibration.problem import Problem
from erk.method.corrections import DIRECTIONS, REACH, Correction, Previous, shortened
from erk.method.drift import check_finite
from erk.method.point import Solver, Step, to_double

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
    states: tuple[Tensor, ...]  # of each batch at the last level above 0, [B, ...]


class Standing(NamedTuple):
    """Where a run stands between two steps: all that its next step depends on."""

    x: Tensor  # [B, ...]
    memory: Any = None  # of the solver
    previous: Previous = ()


class Walk(NamedTuple):
    """Steps of a problem's solver with corrections, which can be repeated from any step on."""

    problem: Problem
    directions: tuple[str, ...]
    levels: Tensor  # above 0, [N + 1]
    solver: Solver

    def start(self, noise: Tensor) -> Standing:
        """Return the standing before the first step."""
        return Standing(noise.to(self.problem.settings.dtype) * self.levels[0])

    def step(self, at: Standing, i: int, drift: Any) -> tuple[Step, Tensor]:
        """Take step i; return it and its directions, [K, B, ...]. Raises NonFiniteError."""
        sigma, sigma_next = self.levels[i], self.levels[i + 1]
        step = self.solver(drift, at.x, sigma, sigma_next, at.memory)
        step = step._replace(sigma_next=sigma_next, index=i)
        vectors = torch.stack([DIRECTIONS[name](step, at.previous) for name in self.directions])
        for values in (step.x, vectors.transpose(0, 1)):
            check_finite(values, i, sigma, drift.in_half)
        return step, vectors

    @staticmethod
    def after(at: Standing, step: Step, vectors: Tensor, row: Sequence[float]) -> Standing:
        """Return the standing after a step, corrected with the weights `row` [K]."""
        x = step.x
        for weight, vector in zip(row, vectors, strict=True):
            x = x + weight * vector if weight else x
        return Standing(shortened(step, x), step.memory, (step.start, *at.previous)[:REACH])

    def follow(
        self, labels: Tensor | None, at: Standing, rows: Sequence[Sequence[float]], i: int = 0
    ) -> Tensor:
        """Continue a run from step i, with the weights `rows` [N][K], to its end, [B, ...]."""
        drift = self.problem.drift(labels)
        for number in range(i, len(rows)):
            step, vectors = self.step(at, number, drift)
            at = self.after(at, step, vectors, rows[number])
        return at.x


def walk_of(problem: Problem, directions: Sequence[str]) -> Walk:
    """Return the walk of a problem's solver along its noise levels."""
    sigmas = problem.sigmas
    solver = problem.settings.solver_for(sigmas, problem.model)
    return Walk(problem, tuple(directions), sigmas[sigmas > 0], solver)


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
    walk = walk_of(problem, directions)
    drifts = [problem.drift(batch.labels) for batch in batches]
    standings = [walk.start(batch.noise) for batch in batches]
    weights, explained = [], []
    for i in range(len(walk.levels) - 1):
        equations, taken = NormalEquations(len(directions)), []
        for batch, drift, at in zip(batches, drifts, standings, strict=True):
            step, vectors = walk.step(at, i, drift)
            target = batch.path[i + 1].to(at.x) - step.x
            equations.add(vectors, target, step.length * step.start.f)
            taken.append((at, step, vectors))
        row, share = equations.solve()
        weights.append(tuple(row))
        explained.append(share)
        standings = [walk.after(*one, row) for one in taken]
    correction = Correction(tuple(walk.levels.tolist()), walk.directions, tuple(weights))
    return Fit(correction, tuple(explained), tuple(at.x for at in standings))


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

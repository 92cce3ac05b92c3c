"""Coefficients of a correction fitted to a network: along the reference path, step by step.

The state after every step is compared with the reference solution from the same noise, and the
multiples of a few directions that bring it nearest are found by least squares, over all samples
and numbers of them at once. The next step starts from the corrected state, so later coefficients
see, and mend, what earlier steps left.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.method.corrections import DIRECTIONS, REACH, Correction
from erk.method.drift import Denoiser
from erk.method.point import Point
from erk.method.settings import Settings

USUAL = ("embedded", "drift", "change", "bend", "stiff")
"""What a correction is made of unless other directions are asked for (docs/beyond.md)."""
CUTOFF = 1e-6  # relative size of the combinations of directions that carry no information
ROUNDING = 1e-5  # of Euler's step: a direction no longer than this is rounding noise, so 0


class Batch(NamedTuple):
    """Samples to calibrate on."""

    noise: Tensor  # unit variance                                    [B, ...]
    labels: Tensor | None
    path: Sequence[Tensor]  # the reference solution at each noise level, N + 1 of [B, ...]


class Fit(NamedTuple):
    """A calibration."""

    correction: Correction
    explained: tuple[float, ...]  # share of the squared error that each step's weights remove, [N]


@torch.no_grad()
def fit(
    plan: Settings,
    model: Denoiser,
    batches: Sequence[Batch],
    directions: Sequence[str],
    guide_model: Denoiser | None = None,
) -> Fit:
    """The correction of `plan`'s solver and schedule for a network, from reference paths.

    One network batch at a time; what is kept between steps is every sample's state and solver
    memory, on the network's device. Deterministic.
    """
    sigmas = plan.sigmas(model)
    levels = sigmas[sigmas > 0]
    solver = plan.solver_for(sigmas, model)
    drifts = [plan.drift(model, batch.labels, guide_model) for batch in batches]
    states = [batch.noise.to(plan.dtype) * sigmas[0] for batch in batches]
    memories: list[Any] = [None] * len(batches)
    before: list[tuple[Point, ...]] = [()] * len(batches)
    weights, explained = [], []
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        system, rows = System(len(directions)), []
        for j, (drift, x, memory) in enumerate(zip(drifts, states, memories, strict=True)):
            step = solver(drift, x, sigma, sigma_next, memory)
            ways = torch.stack([DIRECTIONS[name](step, before[j]) for name in directions])
            target = batches[j].path[i + 1].to(x) - step.x
            system.add(ways, target, step.length * step.start.f)
            rows.append((step, ways))
        found, share = system.solve()
        weights.append(tuple(found))
        explained.append(share)
        for j, (step, ways) in enumerate(rows):
            x = step.x
            for weight, way in zip(found, ways, strict=True):
                x = x + weight * way if weight else x
            states[j], memories[j] = x, step.memory
            before[j] = (step.start, *before[j])[:REACH]
    made = Correction(tuple(levels.tolist()), tuple(directions), tuple(weights))
    return Fit(made, tuple(explained))


class System:
    """Normal equations of one step, summed over batches in float64."""

    def __init__(self, k: int) -> None:
        self.gram = torch.zeros(k, k, dtype=torch.float64)
        self.right = torch.zeros(k, dtype=torch.float64)
        self.size = torch.zeros((), dtype=torch.float64)
        self.move = torch.zeros((), dtype=torch.float64)

    def add(self, ways: Tensor, target: Tensor, move: Tensor) -> None:
        """Count in directions [K, B, ...], what they should sum to and Euler's step, [B, ...]."""
        a, b = ways.flatten(1).double(), target.flatten().double()
        self.gram += (a @ a.T).cpu()
        self.right += (a @ b).cpu()
        self.size += (b @ b).cpu()
        self.move += move.double().square().sum().cpu()

    def solve(self) -> tuple[list[float], float]:
        """The weights [K] and the share of the squared target that they explain."""
        sizes = self.gram.diagonal()
        scale = torch.where(sizes > ROUNDING**2 * self.move, sizes.rsqrt(), 0.0)
        inverse = torch.linalg.pinv(scale * self.gram * scale[:, None], rtol=CUTOFF, hermitian=True)
        weights = scale * (inverse @ (scale * self.right))
        removed = weights @ self.right
        return weights.tolist(), (removed / self.size).item() if self.size > 0 else 0.0

"""The solver's error: the distance of its samples to the converged solution from the same noise.

It says whether a solver follows the model, not whether the model is good, and needs no real images.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erk.method.arguments import require
from erk.method.drift import Denoiser, GuidedDrift
from erk.method.point import Point, norm, to_double
from erk.method.sampler import finite, integrate, steps
from erk.method.schedule import polynomial
from erk.method.settings import Settings
from erk.method.solvers import make_solver
from erk.method.values import number

EVALUATIONS = 128
"""Network evaluations on a reference path. On digits its error is 1e-4, the best 15-step solver's
0.03 and that of 64 Heun steps 0.006 (tests/calibration/test_solver_error.py)."""
BLOCKS = 16  # of seeds, for standard errors
RHO = 7.0  # levels of the reference path are even in sigma^(1/7), as in EDM's schedule


class Ratio(NamedTuple):
    """The ratio of two means over the same seeds."""

    value: float
    error: float  # standard error


@torch.no_grad()
def reference_path(
    drift: GuidedDrift, noise: Tensor, sigmas: Tensor, evaluations: int = EVALUATIONS
) -> Tensor:
    """Solve the ODE from unit-variance noise and return its states at given noise levels.

    DEIS of order 4 runs on a fine schedule of its own; between two fine levels the path is the
    cubic Hermite interpolant of their states and drifts. At sigma = 0 it is D, as in every sampler
    here.

    Parameters
    ----------
    drift : GuidedDrift
        The right side of the ODE.
    noise : Tensor [B, ...]
        Unit-variance noise; its dtype is that of the path.
    sigmas : Tensor [N + 1]
        Strictly decreasing noise levels; the last one may be 0.
    evaluations : int
        Network evaluations, whatever `sigmas` are.

    Returns
    -------
    Tensor [N + 1, B, ...]
        The state at each of `sigmas`.

    Raises
    ------
    NonFiniteError
        If a network produces NaN or infinity.
    """
    require(callable(drift), "drift", "a GuidedDrift", drift)
    require(isinstance(noise, Tensor), "noise", "a tensor [B, ...]", noise)
    require(isinstance(sigmas, Tensor), "sigmas", "a tensor [N + 1]", sigmas)
    evaluations = number("evaluations", evaluations, int, least=2)
    levels = sigmas.to(noise.dtype).double()
    waiting = levels[levels > 0].tolist()
    states, previous, end = [], None, noise
    for point, end in reference_points(  # noqa: B007
        drift, noise, (waiting[0], waiting[-1]), evaluations
    ):
        while waiting and waiting[0] >= point.sigma:
            states.append(_between(previous or point, point, waiting.pop(0)))
        previous = point
    return torch.stack([*states, end] if levels[-1] == 0 else states)


def reference_points(
    drift: GuidedDrift, noise: Tensor, ends: tuple[float, float], evaluations: int
) -> Iterator[tuple[Point, Tensor]]:
    """Yield the points of the reference path at `fine_levels`, each with the state that follows.

    After the last point, at sigma_min, that is the state at sigma = 0, which is D.
    """
    fine = fine_levels(ends, evaluations).to(noise.dtype)
    fine = torch.cat([fine, fine.new_zeros(1)])
    solver = make_solver("deis", sigmas=fine, ends=(ends[1], ends[0]))
    run = steps(drift, noise * fine[0], fine, solver)
    for x, step in finite(run, drift, fine):
        yield step.start, x


def fine_levels(ends: tuple[float, float], evaluations: int) -> Tensor:
    """Return the noise levels of a reference path between (highest, lowest), [evaluations]."""
    return polynomial(evaluations - 1, ends[1], ends[0], RHO)


class Reference(NamedTuple):
    """A reference path that is known at every noise level."""

    levels: Tensor  # fine noise levels, decreasing, [M] float64
    rows: Sequence[Tensor]  # state and drift at each level in turn, last the end: 2 M + 1 of [B, .]

    def at(self, sigma: float) -> Tensor:
        """Return the states at a noise level between the first and the last, or at 0, [B, ...]."""
        if sigma == 0:
            return self.rows[len(self.rows) - 1]
        i = int((self.levels > sigma * (1 + 1e-6)).sum().clamp(1, len(self.levels) - 1))
        return _between(self.point(i - 1), self.point(i), sigma)

    def point(self, i: int) -> Point:
        """Return the point at fine level i."""
        return Point(self.rows[2 * i], self.rows[2 * i + 1], self.levels[i])


@torch.no_grad()
def reference_rows(
    drift: GuidedDrift, noise: Tensor, ends: tuple[float, float], evaluations: int = EVALUATIONS
) -> Tensor:
    """Solve the ODE and return the `rows` of a `Reference`, [2 M + 1, B, ...] on the CPU."""
    rows: list[Tensor] = []
    for point, end in reference_points(drift, noise, ends, evaluations):  # noqa: B007
        rows += [point.x.cpu(), point.f.cpu()]
    return torch.stack([*rows, end.cpu()])


def _between(a: Point, b: Point, sigma: float) -> Tensor:
    """Interpolate (cubic Hermite) between two points at a.sigma >= sigma >= b.sigma, [B, ...]."""
    h = b.sigma.item() - a.sigma.item()
    t = (sigma - a.sigma.item()) / h if h else 1.0
    x = b.x.lerp(a.x, (1 + 2 * t) * (1 - t) ** 2)
    return x + h * (t * (1 - t) ** 2 * a.f + t**2 * (t - 1) * b.f)


def converged(
    settings: Settings,
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    guide_model: Denoiser | None = None,
    evaluations: int = EVALUATIONS,
    guide_labels: Tensor | None = None,
) -> Tensor:
    """Compute the converged solution from unit-variance noise [B, ...], [B, ...].

    It is the limit of every convergent solver between the first and last noise levels of
    `settings`, with their model guidance; nothing else of `settings` matters. Raises ValueError for
    guidance that depends on the steps.
    """
    require(isinstance(settings, Settings), "settings", "an erk.Settings", settings)
    require(isinstance(noise, Tensor), "noise", "a tensor [B, ...]", noise)
    drift = settings.exact_drift(model, labels, guide_model, guide_labels)
    levels = ends(settings.sigmas(model))
    return reference_path(drift, noise.to(settings.dtype), levels, evaluations)[-1]


def ends(sigmas: Tensor) -> Tensor:
    """Return the first and the last positive noise level, and the trailing 0 if any: [2] or [3]."""
    positive = sigmas[sigmas > 0]
    return torch.cat([positive[:1], positive[-1:], sigmas[sigmas == 0]])


@torch.no_grad()
def errors(settings: Settings, drift: GuidedDrift, noise: Tensor, exact: Tensor) -> Tensor:
    """Sample, and compute each sample's distance to its converged solution `exact`, [B] float64."""
    [last] = deque(integrate(drift, noise, settings), 1)
    return to_double(norm(last.x - exact).flatten())


def ratio(numerator: Tensor, denominator: Tensor, blocks: int = BLOCKS) -> Ratio:
    """Compute mean / mean of values [B] of the same seeds, with its standard error.

    The standard error is the jackknife's over contiguous blocks of seeds.
    """
    parts = torch.stack([numerator, denominator]).double().chunk(blocks, 1)
    sums = torch.stack([part.sum(1) for part in parts])
    without = (sums.sum(0) - sums).unbind(1)
    left_out = without[0] / without[1]
    n = len(sums)
    error = ((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt()
    value = numerator.double().mean() / denominator.double().mean()
    return Ratio(value.item(), error.item())


def mean_with_error(values: Sequence[float] | Tensor) -> dict[str, float]:
    """Return the mean of values [n] and its standard error."""
    values = torch.as_tensor(values)
    return {"value": values.mean().item(), "error": (values.std() / len(values) ** 0.5).item()}

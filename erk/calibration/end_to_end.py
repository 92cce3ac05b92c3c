"""Noise levels and coefficients fitted end to end, against the final state.

Gauss-Newton with Levenberg's damping on a few scalars, for any denoiser: the Jacobian is computed
by forward differences, of runs that start again at the step whose scalar changes. The residuals
are weighted anew in every round so that the MEAN distance falls, not the mean square, which a few
samples would decide. S4S (Frankel et al. 2025) and LD3 (Tong et al. 2025) optimise the same
scalars by gradients through the network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from erk.calibration.fit import Fit, ReferenceBatch, Walk, walk_of
from erk.calibration.problem import Problem
from erk.method.corrections import Correction, at_limit
from erk.method.drift import NonFiniteError

ROUNDS = 4  # of Gauss-Newton, at most
TRIES = 4  # damped steps per round, at most
DAMPING = 1e-3  # of the first round, relative to the diagonal
HARDER = 30.0  # factor of the damping after a step that lowers nothing
ENOUGH = 3e-3  # relative gain of a round below which the fit ends
DIFFERENCE = 3e-3  # of a forward difference, in ln sigma and in a coefficient
FARTHEST = 0.5  # move of ln sigma in one round
NARROWEST = 0.01  # difference of ln sigma between two levels; DIFFERENCE is smaller

Residual = Callable[[Tensor], Tensor]
"""scalars [P] -> the final states minus the converged ones, [n, D]."""


def gauss_newton(
    residual: Residual,
    start: Tensor,
    columns: Callable[[Tensor, Tensor], Iterator[Tensor]] | None = None,
    allowed: Callable[[Tensor], bool] = lambda _: True,
    levels: int = 0,
) -> Tensor:
    """Lower the mean norm of the rows of a residual.

    Parameters
    ----------
    residual : callable
        p [P] -> [n, D]; NonFiniteError counts as an infinite norm.
    start : Tensor [P]
        Where to begin, float64.
    columns : callable, optional
        (p, residual(p)) -> the P derivatives [n, D]; default: forward differences.
    allowed : callable
        p -> whether p can be evaluated.
    levels : int
        So many scalars are ln sigma; a round moves them at most FARTHEST.

    Returns
    -------
    Tensor [P]
        `start` itself where nothing is lower.
    """
    p, r = start, residual(start)
    damping, size = DAMPING, _mean_norm(r)
    for _ in range(ROUNDS):
        weights = r.norm(dim=1).clamp_min(1e-12 * size + 1e-30).rsqrt()[:, None]
        derivatives = columns(p, r) if columns else differences(residual, p, r)
        jacobian = torch.stack([(weights * one).flatten() for one in derivatives], 1)
        gram = (jacobian.T @ jacobian).double()
        slope = (jacobian.T @ (weights * r).flatten()).double()
        ridge = gram.diagonal().clamp_min(1e-9 * gram.diagonal().max() + 1e-30).diag()
        before = size
        for _ in range(TRIES):
            move = torch.linalg.solve(gram + damping * ridge, slope)
            move[:levels] = move[:levels].clamp(-FARTHEST, FARTHEST)
            trial = p - move
            there = _evaluated(residual, trial) if allowed(trial) else None
            if there is not None and _mean_norm(there) < size:
                p, r, size, damping = trial, there, _mean_norm(there), damping / 5
                break
            damping *= HARDER
        if size > (1 - ENOUGH) * before:
            break
    return p


def differences(residual: Residual, p: Tensor, r: Tensor, count: int = 0) -> Iterator[Tensor]:
    """Yield the derivatives by the first `count` scalars (0: by all), [n, D] each."""
    for i in range(count or len(p)):
        moved = p.clone()
        moved[i] += DIFFERENCE
        yield (residual(moved) - r) / DIFFERENCE


def _mean_norm(r: Tensor) -> float:
    return r.norm(dim=1).mean().item()


def _evaluated(residual: Residual, p: Tensor) -> Tensor | None:
    try:
        r = residual(p)
    except NonFiniteError:
        return None
    return r if bool(r.isfinite().all()) else None


def logs_of(sigmas: Sequence[float]) -> Tensor:
    """Return ln sigma of the levels between the first and the last above 0, float64."""
    positive = [sigma for sigma in sigmas if sigma > 0]
    return torch.tensor(positive[1:-1], dtype=torch.float64).log()


def levels_of(logs: Tensor, sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the levels with the interior `logs` and the ends of `sigmas`."""
    positive = [sigma for sigma in sigmas if sigma > 0]
    zero = [0.0] * (sigmas[-1] == 0)
    return (positive[0], *logs.exp().tolist(), positive[-1], *zero)


def decreases(logs: Tensor, sigmas: Sequence[float]) -> bool:
    """Return whether `levels_of` fall, each clearly below the one before."""
    levels = torch.tensor([s for s in levels_of(logs, sigmas) if s > 0], dtype=torch.float64)
    return bool((levels.log().diff() < -NARROWEST).all())


def refine_levels(
    states: Callable[[tuple[float, ...]], Sequence[Tensor]],
    exact: Sequence[Tensor],
    sigmas: Sequence[float],
) -> tuple[float, ...]:
    """Move noise levels until the final states are nearest to the converged ones.

    Parameters
    ----------
    states : callable
        Noise levels -> the final states of every batch, with the correction for these levels.
    exact : sequence of Tensor
        The converged solutions of every batch at the last level above 0.
    sigmas : sequence of float
        Where to begin; both ends stay.
    """

    def residual(logs: Tensor) -> Tensor:
        return _residual(states(levels_of(logs, sigmas)), exact)

    logs = logs_of(sigmas)
    if not len(logs) or not decreases(logs, sigmas):
        return tuple(sigmas)
    moved = gauss_newton(residual, logs, allowed=lambda p: decreases(p, sigmas), levels=len(logs))
    return levels_of(moved, sigmas)


def fit_end_to_end(
    problem: Problem, batches: Sequence[ReferenceBatch], first: Fit, free_levels: bool = True
) -> tuple[tuple[float, ...], Correction]:
    """Fit all coefficients, and the noise levels if free, against the final state.

    `first` is the stepwise fit to begin with; `batches` have paths at the problem's levels.
    """
    sigmas, start = problem.sigmas.tolist(), torch.tensor(first.correction.weights).double()
    exact = [batch.path[start.shape[0]] for batch in batches]
    free_levels = free_levels and decreases(logs_of(sigmas), sigmas)
    logs = logs_of(sigmas)[: None if free_levels else 0]
    count, directions = len(logs), first.correction.directions

    def levels(p: Tensor) -> tuple[float, ...]:
        return levels_of(p[:count], sigmas) if count else tuple(sigmas)

    def walk(p: Tensor) -> Walk:
        settings = problem.settings
        if count:
            settings = replace(settings, schedule=levels(p), rho=None, denoise_to_zero=False)
        return walk_of(problem._replace(settings=settings), directions)

    def weights(p: Tensor) -> list[list[float]]:
        rows: list[list[float]] = p[count:].reshape(start.shape).tolist()
        return rows

    def residual(p: Tensor) -> Tensor:
        here, rows = walk(p), weights(p)
        ends = [here.follow(b.labels, here.start(b.noise), rows) for b in batches]
        return _residual(ends, exact)

    def columns(p: Tensor, r: Tensor) -> Iterator[Tensor]:
        if count:
            yield from differences(residual, p, r, count)
        yield from _derivatives(walk(p), batches, weights(p))

    def allowed(p: Tensor) -> bool:
        return not count or decreases(p[:count], sigmas)

    p = gauss_newton(residual, torch.cat([logs, start.flatten()]), columns, allowed, count)
    final = tuple(sigma for sigma in walk(p).levels.tolist())
    return levels(p), Correction(final, directions, tuple(map(tuple, weights(p))))


def _derivatives(
    walk: Walk, batches: Sequence[ReferenceBatch], rows: Sequence[Sequence[float]]
) -> Iterator[Tensor]:
    """Yield the derivatives of the final states by every weight, step by step, [n, D] each."""
    standings = [walk.start(batch.noise) for batch in batches]
    ends = [walk.follow(b.labels, at, rows) for b, at in zip(batches, standings, strict=True)]
    for i, row in enumerate(rows):
        taken = [
            (at, *walk.step(at, i, walk.problem.drift(b.labels)))
            for b, at in zip(batches, standings, strict=True)
        ]
        standings = [walk.after(*one, row) for one in taken]
        short = [at_limit(one[1], at.x).any() for at, one in zip(standings, taken, strict=True)]
        for k in range(len(row)):
            more = [weight + DIFFERENCE * (j == k) for j, weight in enumerate(row)]
            moved = [
                walk.after(*one, more)  # what the limit leaves of the move
                if is_short
                else at._replace(x=at.x + DIFFERENCE * one[2][k])
                for at, one, is_short in zip(standings, taken, short, strict=True)
            ]
            there = [
                walk.follow(b.labels, at, rows, i + 1) for b, at in zip(batches, moved, strict=True)
            ]
            yield _residual(there, ends) / DIFFERENCE


def _residual(states: Sequence[Tensor], exact: Sequence[Tensor]) -> Tensor:
    """Return states - exact of all batches, [n, D] float64 on the CPU."""
    pairs = zip(states, exact, strict=True)
    parts = [(a.cpu().double() - b.cpu().double()).flatten(1) for a, b in pairs]
    return torch.cat(parts)

"""Search for w_stiff and w_con by the solver's error, without FID and real images.

All pairs of a grid start on a few seeds; the better half continues on twice as many (successive
halving, Jamieson and Talwalkar 2016). All pairs see the same noise, so what a seed adds to every
error cancels. Samples of different weights share a batch, as gate and weight act per sample.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erk.calibration.parts import Parts
from erk.calibration.problem import Problem
from erk.calibration.solver_error import Ratio, converged, ratio
from erk.method.guidance import erk_guid, memoryless
from erk.method.point import Guidance, Step, norm, to_double
from erk.method.stiffness import stiffness

WEIGHTS = tuple(round(0.1 * 10 ** (i / 8), 2) for i in range(13))  # w_stiff, 0.1 to 3.16
BETWEEN = 10 ** (1 / 16)  # from a w_stiff half way to the next
THRESHOLDS = 8  # values of w_con, at most
FIRST, LAST = 8, 4  # seeds of the first round, candidates of the last
DIVERGED = 1e12  # the error of a sample that is not finite
SURE = 2.0  # standard errors by which ERK-Guid must win to be recommended


class Trial(NamedTuple):
    """A pair of weights and its errors."""

    w_stiff: float  # 0: the plain solver
    w_con: float
    errors: Tensor  # distance to the converged solution of the first n seeds, [n] float64


class Search(NamedTuple):
    """The result of a search."""

    trials: list[Trial]  # the plain solver first; eliminated trials have fewer seeds
    choice: Trial  # the plain solver, where no weights beat it by SURE standard errors


def search(
    problem: Problem,
    seeds: Sequence[int],
    ends: Tensor,
    parts: Parts,
    weights: Sequence[float] = WEIGHTS,
) -> Search:
    """Find the best weights for the problem's solver, noise levels and model guidance.

    Parameters
    ----------
    problem : Problem
        Networks and the plain solver.
    seeds : sequence of int
        Seeds to compare the weights on.
    ends : Tensor [n, ...]
        The converged solutions of the seeds.
    parts : Parts
        Keeps every batch of errors.
    weights : sequence of float
        The grid's w_stiff; w_con are chosen by `candidates`.

    Raises
    ------
    ValueError
        Where no step has a pair, so that ERK-Guid never acts.
    """
    grid = candidates(problem, seeds[:FIRST], parts, weights)
    none = torch.empty(0, dtype=torch.float64)
    trials = [Trial(0.0, math.inf, none), *(Trial(*pair, none) for pair in grid)]
    alive = list(range(1, len(trials)))
    for number, (count, seen) in enumerate(rounds(len(grid), len(seeds))):
        if number:
            alive = sorted(sorted(alive, key=lambda i: _mean(trials[i]))[:count])
        part = [trials[i] for i in (0, *alive)]
        measured = measure(problem, seeds[:seen], ends, part, parts, f"round{number}")
        for i, trial in zip((0, *alive), measured, strict=True):
            trials[i] = trial
    best = min((trials[i] for i in alive), key=_mean)
    near = [Trial(_short(best.w_stiff * f), best.w_con, none) for f in (1 / BETWEEN, BETWEEN)]
    trials += measure(problem, seeds, ends, near, parts, "refined")
    best = min((best, *trials[-2:]), key=_mean)
    value, error = ratio_of(best, trials[0])
    return Search(trials, best if value + SURE * error < 1 else trials[0])


def rounds(candidates: int, seeds: int) -> Iterator[tuple[int, int]]:
    """Yield (number of candidates, seeds that they have had afterwards) of every round."""
    seen = min(FIRST, seeds)
    while True:
        yield candidates, seen
        if seen == seeds:
            return
        candidates, seen = min(candidates, max(LAST, -(-candidates // 2))), min(2 * seen, seeds)


def most_runs(seeds: int) -> int:
    """Bound the number of trajectories that `search` follows with the solver for all WEIGHTS."""
    runs, before = min(FIRST, seeds), 0  # those that give the thresholds
    for candidates, seen in rounds(len(WEIGHTS) * THRESHOLDS, seeds):
        runs += (candidates + 1) * (seen - before)  # and the plain solver
        before = seen
    return runs + 2 * seeds  # refined


def candidates(
    problem: Problem, seeds: Sequence[int], parts: Parts, weights: Sequence[float] = WEIGHTS
) -> list[tuple[float, float]]:
    """Return the grid: every w_stiff with every w_con that makes a difference at these levels.

    A threshold acts by which steps exceed it, so one between the median stiffnesses of two steps
    stands for all others there. There are at most THRESHOLDS; the first lets every step pass.
    """
    seen = parts.keep("stiffness", lambda: _stiffnesses(problem, seeds)).unique().tolist()
    if not seen:
        raise ValueError(
            "no step of this solver has a pair at these noise levels, so that ERK-Guid never "
            "acts: take more --steps."
        )
    edges = [seen[0] / 2, *(math.sqrt(a * b) for a, b in zip(seen, seen[1:], strict=False))]
    chosen = torch.linspace(0, len(edges) - 1, min(len(edges), THRESHOLDS)).round().long()
    thresholds = dict.fromkeys(_short(edges[i]) for i in chosen.tolist())
    return [(w, c) for c in thresholds for w in weights]


def measure(
    problem: Problem,
    seeds: Sequence[int],
    ends: Tensor,
    trials: Sequence[Trial],
    parts: Parts,
    name: str,
) -> list[Trial]:
    """Return the trials with the errors of all seeds; errors they already have are kept."""
    measured = len(trials[0].errors)
    pairs = [(t, s) for s in range(measured, len(seeds)) for t in range(len(trials))]
    batches = []
    for start in range(0, len(pairs), problem.batch):
        batch = pairs[start : start + problem.batch]

        def distances(batch: Sequence[tuple[int, int]] = batch) -> Tensor:
            return _distances(problem, seeds, ends, trials, batch)

        batches.append(parts.keep(f"{name}-{start}", distances))
    new = torch.cat(batches).reshape(-1, len(trials)) if batches else torch.empty(0, len(trials))
    return [
        t._replace(errors=torch.cat([t.errors, column]))
        for t, column in zip(trials, new.unbind(1), strict=True)
    ]


def converged_ends(
    problem: Problem, seeds: Sequence[int], evaluations: int, parts: Parts, name: str
) -> Tensor:
    """Compute the converged solutions from the seeds' noise, batch by batch: [n, ...]."""

    @torch.inference_mode()
    def end(group: Sequence[int]) -> Tensor:
        noise, labels = problem.draw(group)
        model, labels, guide, guide_labels = problem.arguments(labels)
        return converged(
            problem.settings, model, noise, labels, guide, evaluations, guide_labels
        )

    groups = enumerate(problem.batches(seeds))
    return torch.cat([parts.keep(f"{name}-{i}", lambda g=g: end(g)) for i, g in groups])  # type: ignore[misc]


def ratio_of(trial: Trial, plain: Trial) -> Ratio:
    """Compute the mean error relative to the plain solver's on the same seeds."""
    n = min(len(trial.errors), len(plain.errors))
    return ratio(trial.errors[:n], plain.errors[:n])


def per_sample_guidance(w_stiff: Tensor, w_con: Tensor, scale: str = "quadratic") -> Guidance:
    """Return ERK-Guid with weights [B], one pair per sample, and the growth `scale`."""

    def correct(step: Step) -> Tensor:
        shape = (-1, *[1] * (step.x.ndim - 1))
        w, c = (value.to(step.x).reshape(shape) for value in (w_stiff, w_con))
        return erk_guid(step, w, c, scale)  # type: ignore[arg-type]

    return memoryless(correct)


def _distances(
    problem: Problem,
    seeds: Sequence[int],
    ends: Tensor,
    trials: Sequence[Trial],
    pairs: Sequence[tuple[int, int]],
) -> Tensor:
    """Compute errors of pairs (index of the trial, index of the seed), [n] float64."""
    which, rows = (list(column) for column in zip(*pairs, strict=True))
    noise, labels = problem.draw([seeds[row] for row in rows])
    weights = torch.tensor([trials[i][:2] for i in which], dtype=torch.float64)
    w_stiff, w_con = weights.unbind(1)
    guidance = per_sample_guidance(w_stiff, w_con, problem.settings.erk_scale)
    x = problem.run(noise, labels, guidance)
    distances = norm(to_double(x) - to_double(ends[rows].to(x.device))).flatten().cpu()
    return distances.nan_to_num(nan=DIVERGED, posinf=DIVERGED)


def _stiffnesses(problem: Problem, seeds: Sequence[int]) -> Tensor:
    """Compute the median stiffness of every step that has a pair, [steps] float64."""
    medians = []

    def watch(step: Step) -> None:
        if step.twin is not None and step.h is not None:
            medians.append(stiffness(step.start, step.twin).rho.median().cpu().double())

    problem.run(*problem.draw(seeds), watch=watch)
    return torch.stack(medians) if medians else torch.empty(0, dtype=torch.float64)


def _mean(trial: Trial) -> float:
    return trial.errors.mean().item()


def _short(value: float) -> float:
    """Round to two significant digits, as people type."""
    return float(f"{value:.2g}")

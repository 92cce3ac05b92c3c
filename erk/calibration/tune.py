"""ERK-Guid's two knobs chosen without FID: by the solver's error on noise of its own.

All (w_stiff, w_con) of a grid start on a few seeds; whoever is in the better half goes on to twice
as many (successive halving, Jamieson & Talwalkar 2016). All of them see the same noise, so that
what a seed adds to every error cancels; weights that differ are mates in one batch, as gate and
weight act per sample.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erk.calibration.problem import Problem, ends_of, run
from erk.calibration.solver_error import Ratio, ratio
from erk.method.guidance import erk_guid, memoryless
from erk.method.point import Guidance, Step, norm
from erk.method.stiffness import stiffness

WEIGHTS = tuple(round(0.1 * 10 ** (i / 8), 2) for i in range(13))  # w_stiff, 0.1 to 3.16
BETWEEN = 10 ** (1 / 16)  # from a w_stiff half way to the next
THRESHOLDS = 8  # values of w_con, at most
FIRST, LAST = 8, 4  # seeds of the first round, candidates of the last
BLOWN = 1e12  # the error of a sample that weights have sent to infinity
SURE = 2.0  # standard errors by which ERK-Guid must win to be recommended

Keep = Callable[[str, Callable[[], Tensor]], Tensor]
"""(name, make) -> what `make` gives, or gave in an earlier run."""


class Trial(NamedTuple):
    """A pair of weights and what was measured of it."""

    w_stiff: float  # 0: the plain solver
    w_con: float
    errors: Tensor  # distance to the converged solution of the first n seeds, [n] float64


class Tuned(NamedTuple):
    """What the search found."""

    trials: list[Trial]  # the plain solver first; those that were given up have fewer seeds
    choice: Trial  # the plain solver, where no weights beat it by SURE standard errors


def ratio_of(one: Trial, plain: Trial) -> Ratio:
    """Mean error relative to the plain solver's on the same seeds."""
    n = min(len(one.errors), len(plain.errors))
    return ratio(one.errors[:n], plain.errors[:n])


def rounds(candidates: int, seeds: int) -> Iterator[tuple[int, int]]:
    """(candidates that take part, seeds that they have had afterwards) of every round."""
    seen = min(FIRST, seeds)
    while True:
        yield candidates, seen
        if seen == seeds:
            return
        candidates, seen = min(candidates, max(LAST, -(-candidates // 2))), min(2 * seen, seeds)


def most_runs(seeds: int) -> int:
    """The most trajectories that `tune` follows with the solver for all WEIGHTS."""
    runs, before = min(FIRST, seeds), 0  # those that tell the thresholds
    for candidates, seen in rounds(len(WEIGHTS) * THRESHOLDS, seeds):
        runs += (candidates + 1) * (seen - before)  # and the plain solver
        before = seen
    return runs + 2 * seeds  # refined


def tune(
    problem: Problem,
    seeds: Sequence[int],
    ends: Tensor,
    keep: Keep,
    weights: Sequence[float] = WEIGHTS,
) -> Tuned:
    """The best weights for the problem's solver, noise levels and model guidance.

    `weights` are the grid's w_stiff; `ends` [n, ...] are the converged solutions of the seeds.
    Raises ValueError where no step has a pair, and with it nothing to be tuned.
    """
    grid = candidates(problem, seeds[:FIRST], keep, weights)
    none = torch.empty(0, dtype=torch.float64)
    trials = [Trial(0.0, math.inf, none), *(Trial(*pair, none) for pair in grid)]
    alive = list(range(1, len(trials)))
    for number, (count, seen) in enumerate(rounds(len(grid), len(seeds))):
        if number:
            alive = sorted(sorted(alive, key=lambda i: _mean(trials[i]))[:count])
        part = [trials[i] for i in (0, *alive)]
        found = measure(problem, seeds[:seen], ends, part, keep, f"round{number}")
        for i, one in zip((0, *alive), found, strict=True):
            trials[i] = one
    best = min((trials[i] for i in alive), key=_mean)
    near = [Trial(_short(best.w_stiff * f), best.w_con, none) for f in (1 / BETWEEN, BETWEEN)]
    trials += measure(problem, seeds, ends, near, keep, "refined")
    best = min((best, *trials[-2:]), key=_mean)
    value, error = ratio_of(best, trials[0])
    return Tuned(trials, best if value + SURE * error < 1 else trials[0])


def candidates(
    problem: Problem, seeds: Sequence[int], keep: Keep, weights: Sequence[float] = WEIGHTS
) -> list[tuple[float, float]]:
    """The grid: every w_stiff with every w_con that makes a difference to these noise levels.

    A threshold acts by which steps exceed it, so one between the median stiffnesses of two steps
    stands for all others there. THRESHOLDS of them at most, from one that lets every step pass.
    """
    seen = keep("stiffness", lambda: _stiffnesses(problem, seeds)).unique().tolist()
    if not seen:
        raise ValueError(
            "no step of this solver has a pair at these noise levels, so that ERK-Guid never "
            "acts: take more --steps."
        )
    edges = [seen[0] / 2, *(math.sqrt(a * b) for a, b in zip(seen, seen[1:], strict=False))]
    places = torch.linspace(0, len(edges) - 1, min(len(edges), THRESHOLDS)).round().long()
    levels = dict.fromkeys(_short(edges[i]) for i in places.tolist())
    return [(w, c) for c in levels for w in weights]


def measure(
    problem: Problem,
    seeds: Sequence[int],
    ends: Tensor,
    trials: Sequence[Trial],
    keep: Keep,
    name: str,
) -> list[Trial]:
    """The trials with the errors of all seeds; those that they have are not measured again."""
    had = len(trials[0].errors)
    pairs = [(t, s) for s in range(had, len(seeds)) for t in range(len(trials))]
    parts = []
    for start in range(0, len(pairs), problem.batch):
        own = pairs[start : start + problem.batch]
        parts.append(
            keep(f"{name}-{start}", lambda own=own: _distances(problem, seeds, ends, trials, own))  # type: ignore[misc]
        )
    new = torch.cat(parts).reshape(-1, len(trials)) if parts else torch.empty(0, len(trials))
    return [
        t._replace(errors=torch.cat([t.errors, column]))
        for t, column in zip(trials, new.unbind(1), strict=True)
    ]


def converged(
    problem: Problem, seeds: Sequence[int], evaluations: int, keep: Keep, name: str
) -> Tensor:
    """Where the ODE itself ends from the seeds' noise, a batch at a time: [n, ...]."""
    parts = []
    for start in range(0, len(seeds), problem.batch):
        own = seeds[start : start + problem.batch]
        parts.append(keep(f"{name}-{start}", lambda own=own: ends_of(problem, own, evaluations)))  # type: ignore[misc]
    return torch.cat(parts)


def weighted(w_stiff: Tensor, w_con: Tensor) -> Guidance:
    """Return ERK-Guid with weights [B], one pair per sample."""

    def guide(step: Step) -> Tensor:
        shape = (-1, *[1] * (step.x.ndim - 1))
        w, c = (value.to(step.x).reshape(shape) for value in (w_stiff, w_con))
        return erk_guid(step, w, c)  # type: ignore[arg-type]

    return memoryless(guide)


def _distances(
    problem: Problem,
    seeds: Sequence[int],
    ends: Tensor,
    trials: Sequence[Trial],
    pairs: Sequence[tuple[int, int]],
) -> Tensor:
    """Distances to the converged solution of pairs (trial, place of the seed), [n] float64."""
    which, places = (list(column) for column in zip(*pairs, strict=True))
    noise, labels = problem.start([seeds[place] for place in places])
    weights = torch.tensor([trials[i][:2] for i in which], dtype=torch.float64)
    x = run(problem, noise, labels, weighted(*weights.unbind(1)))
    found = norm(x.double() - ends[places].to(x.device).double()).flatten().cpu()
    return found.nan_to_num(nan=BLOWN, posinf=BLOWN)


def _stiffnesses(problem: Problem, seeds: Sequence[int]) -> Tensor:
    """The median stiffness of every step that has a pair, [steps] float64."""
    found = []

    def watch(_: Tensor, step: Step) -> None:
        if step.twin is not None and step.h is not None:
            found.append(stiffness(step.start, step.twin).rho.median().double().cpu())

    run(problem, *problem.start(seeds), watch=watch)
    return torch.stack(found) if found else torch.empty(0, dtype=torch.float64)


def _mean(one: Trial) -> float:
    return one.errors.mean().item()


def _short(value: float) -> float:
    """Two significant digits: what people type."""
    return float(f"{value:.2g}")

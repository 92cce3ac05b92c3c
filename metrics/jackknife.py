"""Standard errors by the delete-a-group jackknife, for one run and for two with the same seeds.

A Fréchet distance falls with N, so that blocks of N / G samples would measure another quantity
than all N. Leaving out one group of G keeps N nearly the same: value and error belong together,
and the difference of two runs is the difference of their values. Efron & Tibshirani 1993, ch. 11;
groups in place of single samples as in Kott 2001.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from scipy.special import stdtrit
from torch import Tensor

from metrics.statistics import whole_number

LEVEL = 0.975  # of Student's t: a two-sided interval of 95 %

T = TypeVar("T")
Replicates = Sequence[float | None]
"""A metric without group 0, without group 1, ...; None where it is unknown."""


class Estimate(NamedTuple):
    """A number with its standard error; None: the error is unknown."""

    value: float
    error: float | None


class Difference(NamedTuple):
    """The difference of two runs; ``exceeds``: chance does not explain it at 95 %."""

    value: float
    error: float
    exceeds: bool


def group_of(n: int, groups: int) -> Tensor:
    """Return the group of every sample, int64 [n]: contiguous blocks of nearly equal size.

    Raises ValueError unless 1 <= groups <= n.
    """
    groups = whole_number(groups, "groups")
    if not 1 <= groups <= n:
        raise ValueError(f"{n} samples cannot be split into {groups} groups: use 1 to {n}")
    return torch.arange(n) * groups // n


def drawn_group_of(n: int, groups: int) -> Tensor:
    """Return groups as `group_of`, but of samples drawn from a fixed seed."""
    return group_of(n, groups)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]


def is_in_blocks(labels: Sequence[int] | Tensor) -> bool:
    """Return whether neighbours share their class far more often than in a random order.

    Groups of neighbours then are no random parts: errors would be those of missing classes.
    """
    classes = torch.as_tensor(labels, dtype=torch.long)
    n, counts = len(classes), classes.unique(return_counts=True)[1].double()
    if n < 2 or len(counts) < 2:
        return False
    equal = (classes[1:] == classes[:-1]).double().mean()
    by_chance = (counts * (counts - 1)).sum() / (n * (n - 1))
    return bool(equal > (1 + by_chance) / 2)


def kept_without_each(groups: Tensor) -> Iterator[Tensor]:
    """Yield bool [N] masks of the samples that remain when each group of int64 [N] is left out.

    With a single group there is nothing to leave out and nothing is yielded.
    """
    names = groups.unique()
    if len(names) > 1:
        yield from (groups != name for name in names)


def replicated(groups: Tensor, metric: Callable[[Tensor], T]) -> tuple[T, list[T]]:
    """Return ``metric`` of all samples and of the samples without each group.

    ``metric`` takes a bool [N] mask of the samples that remain.
    """
    whole = metric(torch.ones_like(groups, dtype=torch.bool))
    return whole, [metric(kept) for kept in kept_without_each(groups)]


def standard_error(replicates: Replicates) -> float | None:
    """Return the jackknife error sqrt((G - 1) / G * sum_g (r_g - mean r)^2) of G replicates.

    None with fewer than 2 replicates or if one is None. Raises ValueError for NaN and infinity.
    """
    known = [value for value in replicates if value is not None]
    if len(known) < max(2, len(replicates)):
        return None
    if not all(map(math.isfinite, known)):
        raise ValueError(f"a standard error needs finite replicates, not {known}")
    mean = math.fsum(known) / len(known)
    squares = math.fsum((value - mean) ** 2 for value in known)
    return math.sqrt(squares * (len(known) - 1) / len(known))


def paired_difference(
    value_a: float | None, replicates_a: Replicates, value_b: float | None, replicates_b: Replicates
) -> Difference | None:
    """Return value_a - value_b with the jackknife error of the replicates' differences.

    Both runs used the same seeds in the same groups, so noise that they share cancels.
    ``exceeds`` compares with Student's t of G - 1 degrees of freedom. None if a value or a
    replicate is None, or with fewer than 2 groups. Raises ValueError for different numbers of
    groups.
    """
    if len(replicates_a) != len(replicates_b):
        raise ValueError(
            f"runs with {len(replicates_a)} and {len(replicates_b)} groups do not pair up: "
            "measure both with the same seeds and groups"
        )
    pairs = zip(replicates_a, replicates_b, strict=True)
    error = standard_error([None if a is None or b is None else a - b for a, b in pairs])
    if error is None or value_a is None or value_b is None:
        return None
    value = value_a - value_b
    limit = float(stdtrit(len(replicates_a) - 1, LEVEL)) * error
    return Difference(value, error, abs(value) > limit)

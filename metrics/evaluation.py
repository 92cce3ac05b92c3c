"""From features to numbers: every measure of a protocol, with its jackknife replicates.

A replicate is the same measure with one of the groups of consecutive images left out. It has
nearly as many images as the whole, so that the bias of FD and recall with N is the same, and the
spread of the replicates gives the standard error (metrics/jackknife.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.distances import (
    covariance_factor,
    fd_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from metrics.extraction import Found
from metrics.extractors import Features
from metrics.jackknife import Estimate, group_of, standard_error
from metrics.neighbours import membership
from metrics.protocols import Measure, Protocol, find_protocol
from metrics.references import Reference, Statistics
from metrics.statistics import Moments, moments_of

GROUPS = 10
FEWEST = 20  # images for an extrapolation
KID_SUBSET = 1000
NO_REAL = "real images are needed, give them by --real DIR or ZIP"
NEIGHBOURS = 5  # the most that any protocol asks for

Values = tuple[list[float], list[list[float]]]
"""The value of each column, and the replicates of each (none: no error is defined for it)."""


class Case(NamedTuple):
    """What a measure is computed from."""

    measure: Measure
    generated: Tensor  # [N, D], the extractor's output that is measured
    real: Statistics | None  # None: the measure needs none
    labels: Tensor | None  # int64 [N], the classes asked for
    groups: Tensor  # int64 [N]; a single group: no replicates
    memory: int | None
    device: torch.device


class Result(NamedTuple):
    """Numbers of one set of images."""

    protocol: str
    n: int
    values: dict[str, float | None]  # by column; None: not defined here, the notes say why
    replicates: dict[str, list[float]]  # by column, each group left out once; []: no error
    notes: list[str]

    @property
    def errors(self) -> dict[str, float | None]:
        """Standard error by column."""
        return {name: standard_error(self.replicates.get(name, [])) for name in self.values}


def measure(
    found: Found,
    protocol: Protocol | str,
    reference: Reference | None = None,
    *,
    real: Mapping[str, Features] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    groups: int = GROUPS,
    by_seed: bool = True,
    memory: int | None = None,
    device: torch.device | str = "cpu",
) -> Result:
    """Every measure of ``protocol`` for the features ``found`` of images in seed order.

    ``reference`` holds the statistics of real images, ``real`` features of real images where
    the reference keeps none; without a reference ``real`` serves for both. ``labels`` are the
    classes that were asked for. ``groups`` > 1 gives standard errors; without ``by_seed`` they are
    drawn, since neighbours in the order may be alike (of one class). ``memory`` bounds the bytes
    that neighbours may take beside the features. Raises ValueError for fewer than 2 images, NaN,
    or labels that do not fit.
    """
    if found.n < 2:
        raise ValueError(f"there are {found.n} images: at least 2 are needed to measure anything")
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    asked = None if labels is None else torch.as_tensor(labels, dtype=torch.long)
    if asked is not None and asked.shape != (found.n,):
        raise ValueError(f"there are {found.n} images but labels of shape {list(asked.shape)}")
    left = found.n - -(-found.n // groups)  # when the largest group is left out
    enough = found.n >= 2 * groups and left > NEIGHBOURS
    parts = group_of(found.n, groups if enough else 1)
    if not by_seed:
        parts = parts[torch.randperm(found.n, generator=torch.Generator().manual_seed(0))]
    values: dict[str, float | None] = {}
    replicates: dict[str, list[float]] = {}
    notes: list[str] = []
    if not enough and groups > 1:
        notes.append(f"no standard errors: {found.n} images are too few for {groups} groups")
    for one in protocol.measures:
        statistics = _statistics(one, reference, real)
        why = _undefined(one, found.n, statistics, asked)
        if why is None:
            generated = getattr(found.features[one.extractor], one.field)
            case = Case(one, generated, statistics, asked, parts, memory, torch.device(device))
            numbers, repeats = KINDS[one.kind](case)
            values |= dict(zip(one.columns, numbers, strict=True))
            replicates |= dict(zip(one.columns, repeats, strict=False))
        else:
            values |= dict.fromkeys(one.columns)
            notes.append(f"{' and '.join(one.columns)}: {why}")
    return Result(protocol.name, found.n, values, replicates, notes)


def fd_floor(
    real: Statistics,
    n: int,
    labels: Tensor | None = None,
    *,
    repeats: int = 10,
    seed: int = 0,
) -> Estimate:
    """FD that n perfect samples would get: real images drawn with replacement, to all of them.

    Mean over ``repeats`` seeded draws and the standard deviation of ONE draw (not of the mean):
    below value + error, differences of FD at this n mean nothing. With ``labels`` [N] each class
    is drawn equally often (n is rounded down to a multiple of the classes). Raises ValueError for
    statistics without features and for n below 2 or, with labels, twice the classes.
    """
    if real.features is None or repeats < 2:
        raise ValueError(f"an FD floor needs real features and 2 repeats or more, not {repeats}")
    generator = torch.Generator().manual_seed(seed)
    classes = [torch.arange(len(real.features))]
    if labels is not None:
        classes = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    if n < 2 * len(classes):
        raise ValueError(f"an FD floor of {n} images needs {2 * len(classes)} or more")
    factor, draws = covariance_factor(real.cov), []
    for _ in range(repeats):
        rows = [_draw(members, n // len(classes), generator) for members in classes]
        drawn = moments_of(real.features[torch.cat(rows)])
        draws.append(
            frechet_distance(
                real=(real.mean, real.cov), generated=(drawn.mean, drawn.cov), factor=factor
            )
        )
    fds = torch.tensor(draws, dtype=torch.float64)
    return Estimate(fds.mean().item(), fds.std().item())


def _statistics(
    one: Measure, reference: Reference | None, real: Mapping[str, Features] | None
) -> Statistics | None:
    """What the reference, or else the real images, say to a measure."""
    known = reference.statistics.get(one.statistics) if reference is not None else None
    features = (
        getattr(real[one.extractor], one.field, None) if real and one.extractor in real else None
    )
    if features is None:
        return known
    if known is not None:
        return known._replace(features=features)
    moments = moments_of(features)
    return Statistics(moments.mean, moments.cov, moments.n, features)


def _undefined(one: Measure, n: int, real: Statistics | None, labels: Tensor | None) -> str | None:
    """Why a measure of n images has no value; None: it has."""
    if one.kind.startswith("fd") and real is None:
        return f"the reference has no statistics of {one.statistics}"
    if one.needs_real_features and (real is None or real.features is None):
        return NO_REAL
    if one.kind == "accuracy" and labels is None:
        return ("the classes asked for are not known: a run keeps those of --labels balanced, "
                "--class and files only (random ones: generate.py --evaluate)")  # fmt: skip
    fewest = n
    if one.needs_real_features and real is not None and real.features is not None:
        fewest = min(n, len(real.features))
    needed = {"fd_infinity": FEWEST, "kid": KID_SUBSET, "neighbours": one.options.get("k", 0) + 1,
              "is": one.options.get("splits", 1)}  # fmt: skip
    if fewest < needed.get(one.kind, 0):
        return f"{fewest} images are too few, {needed[one.kind]} are needed"
    return None


def _frechet(case: Case) -> Values:
    assert case.real is not None
    real, factor = (case.real.mean, case.real.cov), covariance_factor(case.real.cov)
    parts = [moments_of(case.generated[case.groups == g]) for g in case.groups.unique()]
    whole = Moments(case.generated.shape[1])
    for part in parts:
        whole.merge(part)

    def distance(moments: Moments) -> float:
        return frechet_distance(real=real, generated=(moments.mean, moments.cov), factor=factor)

    left = [whole.without(part) for part in parts] if len(parts) > 1 else []
    return [distance(whole)], [[distance(rest) for rest in left]]


def _extrapolated(case: Case) -> Values:
    assert case.real is not None
    real, own = (case.real.mean, case.real.cov), case.generated
    return _repeated(case, lambda left: (fd_infinity(real=real, generated=own, without=left),))


def _inception(case: Case) -> Values:
    how = case.measure.options
    splits = {"shuffle": False, **how} if "split_size" in how else how
    return _repeated(case, lambda left: inception_score(case.generated, **splits, without=left))


def _kernel(case: Case) -> Values:
    assert case.real is not None and case.real.features is not None
    real, own, size = case.real.features, case.generated, KID_SUBSET
    return _repeated(
        case, lambda w: kernel_distance(real=real, generated=own, subset_size=size, without=w)
    )


def _neighbours(case: Case) -> Values:
    assert case.real is not None and case.real.features is not None
    options = case.measure.options
    order = case.groups.argsort(stable=True)  # groups in a row, as membership wants them
    both = case.real.features, case.generated[order]
    most = min(options.get("reduced", len(both[0])), *map(len, both))
    reduced = "reduced" in options
    real, generated = ((_reduced(f, most) if reduced else f).to(case.device) for f in both)
    groups = int(case.groups.max()) + 1
    k, strict = options["k"], options.get("strict", False)
    found = membership(
        real=real, generated=generated, k=k, strict=strict, groups=groups, memory=case.memory
    )
    of = group_of(len(generated), groups).to(found.precise.device)
    left = [of != g for g in range(groups)] if groups > 1 else []
    every = torch.ones_like(of, dtype=torch.bool)
    rows = [
        [_share(found.precise[keep]) for keep in (every, *left)],
        [_share(row) for row in found.recalled],
        [_share(found.inside[keep]) / k for keep in (every, *left)],
        [_share(row) for row in found.covered],
    ][: len(case.measure.columns)]
    return [row[0] for row in rows], [row[1:] for row in rows]


def _accuracy(case: Case) -> Values:
    assert case.labels is not None
    right = (case.generated.argmax(1) == case.labels).double()
    every = torch.zeros(len(right), dtype=torch.bool)
    return _repeated(case, lambda left: (right[~(every if left is None else left)].mean().item(),))


KINDS: dict[str, Callable[[Case], Values]] = {
    "fd": _frechet,
    "fd_infinity": _extrapolated,
    "is": _inception,
    "kid": _kernel,
    "neighbours": _neighbours,
    "accuracy": _accuracy,
}


def _repeated(case: Case, function: Callable[[Tensor | None], tuple[float, ...]]) -> Values:
    """function(samples to leave out): of none, and of each group. A spread gets no replicates."""
    groups = case.groups.unique()
    repeats = [function(case.groups == g)[0] for g in groups] if len(groups) > 1 else []
    return list(function(None)), [repeats]


def _reduced(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, drawn by a fixed seed, in their order."""
    if len(rows) <= most:
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
    return rows[drawn.sort().values]


def _share(marks: Tensor) -> float:
    return marks.double().mean().item()


def _draw(members: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return members[torch.randint(len(members), (n,), generator=generator)]

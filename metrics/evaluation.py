"""From features to an Evaluation: every measure of a protocol, with standard errors and notes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erk.method.arguments import require
from metrics.distances import covariance_factor, frechet_distance
from metrics.extractors import Outputs
from metrics.extractors.weights import check_same_weights
from metrics.features import Features
from metrics.jackknife import (
    Difference,
    Estimate,
    drawn_group_of,
    group_of,
    is_in_blocks,
    paired_difference,
    standard_error,
)
from metrics.measures import Case, Measure
from metrics.protocols import Protocol, find_protocol
from metrics.reference_files import Reference
from metrics.selection import checked_labels
from metrics.statistics import Statistics, moments_of, whole_number

VERSION = 1  # of the values: raise it when they change for the same features (test_version.py)
GROUPS = 10
FEWEST_LEFT = 6  # images that each replicate must have for standard errors to be given
PAIRED = (  # details and hashes that a paired difference needs alike
    "reference_sha256", "real", "extractors", "extractor_precision", "groups of images",
    "classes asked for",
)  # fmt: skip
FEW = 5000  # images, below which the bias of FD and IS exceeds most differences


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one set of images.

    Attributes
    ----------
    protocol
        Name of the protocol.
    n
        Number of images.
    values
        Column -> value; None: not defined, for the reason in ``undefined``.
    replicates
        Column -> values with each group of images left out, where a standard error is defined.
    undefined
        Reasons of values and standard errors that are missing.
    caveats
        What limits the use of the values.
    details
        The other entries of ``to_dict``: reference, real images, extractors, ...
    pairing
        Hashes of the groups of images and, where known, of the requested classes.
    errors
        Column -> standard error, or None.
    notes
        ``undefined`` and ``caveats``.
    """

    protocol: str
    n: int
    values: dict[str, float | None]
    replicates: dict[str, list[float]]
    undefined: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    pairing: dict[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> dict[str, float | None]:
        """Standard error by column."""
        return {name: standard_error(self.replicates.get(name, [])) for name in self.values}

    @property
    def notes(self) -> list[str]:
        """What a reader of the values must know."""
        return [*self.undefined, *self.caveats]

    def to_dict(self) -> dict[str, Any]:
        """Return one flat JSON-serializable row; the error of x is ``x_se``."""
        row: dict[str, Any] = {"protocol": self.protocol, "n": self.n} | self.values
        row |= {f"{name}_se": error for name, error in self.errors.items()}
        replicates = {name: values for name, values in self.replicates.items() if values}
        return row | self.details | {"replicates": replicates, "notes": self.notes}


def evaluate_features(
    features: Features,
    protocol: Protocol | str,
    reference: Reference | None = None,
    *,
    real: Mapping[str, Outputs] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    groups: int = GROUPS,
    in_seed_order: bool = False,
    memory: int | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Compute every measure of a protocol.

    Parameters
    ----------
    features
        Features of the images, see `metrics.extract`.
    protocol
        Protocol or its name.
    reference
        Statistics of real images; None: those of ``real``.
    real
        Extractor -> outputs of real images, where the reference keeps no features.
    labels
        int64 [N], the classes asked for.
    groups
        Groups of images left out in turn for the standard errors; 1: no errors.
    in_seed_order
        Groups are blocks of neighbours, for images in the order of their seeds; else they are drawn
        from a fixed seed, since neighbours may be of one class.
    memory
        Bytes that the nearest-neighbour search may take besides the features.
    device
        Where measures are computed if it is a CUDA device; else they are on the CPU.

    Raises
    ------
    ValueError
        Fewer than 2 images, NaN, or labels that do not fit.
    """
    n = features.n
    if n < 2:
        raise ValueError(f"there are {n} images: at least 2 are needed to measure anything")
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    asked = None if labels is None else checked_labels(labels, n, None, "the set")
    undefined: list[str] = []
    too_few = f"{n} images are too few for {groups} groups"
    if groups > 1 and (n < 2 * groups or n - -(-n // groups) < FEWEST_LEFT):
        undefined.append(f"no standard errors: {too_few}")
        groups = 1
    is_random = in_seed_order and (asked is None or not is_in_blocks(asked))
    parts = (group_of if is_random else drawn_group_of)(n, groups)
    values: dict[str, float | None] = {}
    replicates: dict[str, list[float]] = {}
    for one in protocol.measures:
        statistics = _statistics(one, reference, real)
        _check_weights(one, features, reference)
        reason = one.undefined(n, statistics, asked)
        if reason is not None:
            undefined.append(f"{' and '.join(one.columns)}: {reason}")
            values |= dict.fromkeys(one.columns)
            continue
        generated = features.output(one.extractor, one.output)
        case = _case_on(device, Case(one, generated, statistics, asked, parts, memory))
        for column, (value, repeats) in one.rule.compute(case).items():
            values[column] = value
            known = [repeat for repeat in repeats if repeat is not None]
            if len(known) < len(repeats):
                undefined.append(f"no standard error of {column}: {too_few}")
            elif known:
                replicates[column] = known
    pairing = {"groups of images": _hash(parts)}
    pairing |= {} if asked is None else {"classes asked for": _hash(asked)}
    return Evaluation(protocol.name, n, values, replicates, undefined, pairing=pairing)


def _check_weights(measure: Measure, features: Features, reference: Reference | None) -> None:
    """Raise ValueError if images and reference come from different weights of the extractor."""
    known = None if reference is None else reference.statistics.get(measure.statistics)
    if reference is not None and known is not None:
        name, extractor = f"the reference {reference.name}", measure.extractor
        hashes = {name: known.weights, "the images": features.weights.get(extractor)}
        check_same_weights(extractor, hashes)


def paired_differences(a: Evaluation, b: Evaluation) -> dict[str, Difference]:
    """Return a - b of every column that has standard errors in both, with its standard error.

    Both evaluations are of the same seeds in the same groups, so what they share cancels. Raises
    ValueError for evaluations that are known to differ in protocol, reference, extractors, number
    of images, groups or classes.
    """
    expected = "an Evaluation of metrics.evaluate"
    require(isinstance(a, Evaluation), "a", expected, a)
    require(isinstance(b, Evaluation), "b", expected, b)
    _check_pair(a, b)
    differences = {}
    for name, value in a.values.items():
        replicates = a.replicates.get(name, []), b.replicates.get(name, [])
        one = None
        if all(replicates):
            one = paired_difference(value, replicates[0], b.values.get(name), replicates[1])
        if one is not None:
            differences[name] = one
    return differences


def _check_pair(a: Evaluation, b: Evaluation) -> None:
    """Raise ValueError unless the difference of two evaluations is that of their images."""
    if a.protocol != b.protocol or a.n != b.n:
        raise ValueError(
            f"{a.n} images by protocol {a.protocol} and {b.n} by {b.protocol} do not pair up: "
            "evaluate the same seeds by one protocol"
        )
    of_a, of_b = a.details | a.pairing, b.details | b.pairing
    for name in PAIRED:
        if None not in (one := (of_a.get(name), of_b.get(name))) and one[0] != one[1]:
            raise ValueError(
                f"the evaluations differ in their {name.replace('_', ' ')}: a paired difference "
                "needs the same seeds, classes, reference and networks"
            )


def _case_on(device: torch.device | str, case: Case) -> Case:
    """Move the data of a measure to a CUDA device; other devices have no fast float64."""
    if torch.device(device).type != "cuda":
        return case
    fields = case._asdict() | {"generated": case.generated.to(device)}
    fields |= {"groups": case.groups.to(device)}
    fields |= {"labels": None if case.labels is None else case.labels.to(device)}
    if case.real is not None:
        mean, cov, features = case.real.mean, case.real.cov, case.real.features
        features = None if features is None else features.to(device)
        real = case.real._replace(mean=mean.to(device), cov=cov.to(device), features=features)
        fields |= {"real": real}
    return Case(**fields)


def _hash(values: Tensor) -> str:
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()


def fd_floor(
    real: Statistics,
    n: int,
    labels: Tensor | None = None,
    *,
    repeats: int = 10,
    seed: int = 0,
) -> Estimate:
    """Compute the FD of n perfect samples: n of the real images, drawn with replacement, to all.

    Parameters
    ----------
    real
        Statistics with features.
    n
        Number of images; with labels it is rounded down to a multiple of the number of classes.
    labels
        Classes of the features, int64 [N]; if they are given, each class is drawn equally often.
    repeats
        Number of seeded draws.
    seed
        Seed of the draws.

    Returns
    -------
    Estimate
        Mean over the draws and standard deviation of one draw (not of the mean): differences
        between FDs below their sum mean nothing at this n.

    Raises
    ------
    ValueError
        Statistics without features, n below 2 or, with labels, twice the classes, or fractions.
    """
    n, repeats = whole_number(n, "n"), whole_number(repeats, "repeats")
    require(isinstance(real, Statistics), "real", "statistics of a reference", real)
    require(isinstance(labels, Tensor | None), "labels", "a tensor int64 [N]", labels)
    if real.features is None or repeats < 2:
        raise ValueError(f"an FD floor needs real features and 2 repeats or more, not {repeats}")
    generator = torch.Generator().manual_seed(whole_number(seed, "seed"))
    classes = [torch.arange(len(real.features))]
    if labels is not None:
        classes = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    if n < 2 * len(classes):
        raise ValueError(f"an FD floor of {n} images needs {2 * len(classes)} or more")
    factor, draws = covariance_factor(real.cov), []
    for _ in range(repeats):
        rows = [_draw(members, n // len(classes), generator) for members in classes]
        drawn = moments_of(real.features[torch.cat(rows)])
        draws.append(frechet_distance(real, drawn, factor=factor))
    fds = torch.tensor(draws, dtype=torch.float64)
    return Estimate(fds.mean().item(), fds.std().item())


def floor_of(
    protocol: Protocol, reference: Reference | None, n: int, labels: Tensor | None
) -> dict[str, Any]:
    """Return the FD floor, for ``Evaluation.details``; {} where the protocol gives none."""
    if reference is None or protocol.floor is None:
        return {}
    statistics = reference.statistics.get(protocol.floor)
    if statistics is None or statistics.features is None:
        return {}
    balanced = labels is not None and _is_balanced(labels, reference.labels)
    if balanced and reference.labels is None:
        return {}
    floor = fd_floor(statistics, n, reference.labels if balanced else None)
    return {
        "fd_floor": floor.value, "fd_floor_std": floor.error, "fd_floor_balanced": balanced
    }  # fmt: skip


def _is_balanced(labels: Tensor, real: Tensor | None) -> bool:
    """Return whether the classes, all of the real ones if those are known, are equally frequent."""
    classes, counts = labels.unique(return_counts=True)
    if real is not None and not torch.equal(classes, real.unique()):
        return False
    return bool(counts.max() - counts.min() <= 1) and len(labels) >= 2 * len(counts)


def _statistics(
    measure: Measure, reference: Reference | None, real: Mapping[str, Outputs] | None
) -> Statistics | None:
    """Return the reference's statistics for a measure, completed from the real images."""
    known = reference.statistics.get(measure.statistics) if reference is not None else None
    outputs = (real or {}).get(measure.extractor)
    features = None if outputs is None else getattr(outputs, measure.output, None)
    if features is None:
        return known
    if known is not None:
        return known._replace(features=features)
    moments = moments_of(features)
    return Statistics(moments.mean, moments.cov, moments.n, features)


def _draw(members: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return members[torch.randint(len(members), (n,), generator=generator)]

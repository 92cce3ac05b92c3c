"""Kinds of measures: what each one needs, and how it computes values and jackknife replicates.

A replicate is the same measure with one group of images left out. It has nearly as many images as
the full set, so that the bias of FD and recall with N is the same, and the spread of the
replicates gives the standard error (metrics/jackknife.py). Random draws are those of the full set:
a jackknife must not draw again.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metrics.distances import (
    covariance_factor,
    extrapolated_distance,
    frechet_distance,
    kernel_distances,
    kernel_draws,
    nested_subsets,
    sample_order,
    split_scores,
)
from metrics.jackknife import kept_without_each, replicated
from metrics.neighbours import membership
from metrics.statistics import (
    Statistics,
    as_features,
    check_finite,
    check_same_dimension,
    merged,
    moments_of,
    whole_number,
    without_each,
)

NO_REAL = "real images are needed, give them by --real PATH (in Python real=PATH)"
NO_LABELS = (
    "the images' classes are not known: erk generate records them with --labels balanced or "
    "--class; for classes that it draws or reads from a file use erk generate --evaluate; to other "
    "images add a dataset.json with their classes"
)

SUBSETS = 100  # of a kernel distance
COUNTS = ("k", "reduced", "split_size", "splits", "subset_size")  # options that count samples

Values = dict[str, tuple[float, list[float | None]]]
"""Column -> value and replicates; [] where no standard error is defined, None where too few images
are left for a replicate."""


class Case(NamedTuple):
    """The data that one measure is computed from."""

    measure: "Measure"
    generated: Tensor  # [N, D], the extractor's output that is measured
    real: Statistics | None  # None: the measure needs none
    labels: Tensor | None  # int64 [N], the classes asked for
    groups: Tensor  # int64 [N]; a single group: no replicates
    memory: int | None  # bytes for neighbours


class Kind(ABC):
    """What a kind of measure needs, and its computation."""

    output: ClassVar[str] = "features"  # the extractor's output, unless an option names another
    options: ClassVar[frozenset[str]] = frozenset({"output"})
    needs_statistics: ClassVar[bool] = False
    needs_real_features: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False  # which has full rank only for many images
    trend: ClassVar[str] = ""  # what more images do to the value, in words

    def minimum(self, options: Mapping[str, Any]) -> int:
        """Return the fewest images of which the measure is defined."""
        return 0

    @abstractmethod
    def compute(self, case: Case) -> Values:
        """Compute the columns of ``case.measure``."""


class Frechet(Kind):
    """Fréchet distance to the reference's moments."""

    needs_statistics = needs_covariance = True
    trend = "FD falls"

    def compute(self, case: Case) -> Values:
        assert case.real is not None
        real, factor = case.real, covariance_factor(case.real.cov)
        parts = [moments_of(case.generated[case.groups == g]) for g in case.groups.unique()]
        distances = [
            frechet_distance(real, moments, factor=factor)
            for moments in itertools.chain([merged(parts)], without_each(parts))
        ]
        return {case.measure.columns[0]: (distances[0], list(distances[1:]))}


class FrechetInfinity(Kind):
    """Fréchet distance extrapolated to infinitely many images."""

    needs_statistics = needs_covariance = True

    def minimum(self, options: Mapping[str, Any]) -> int:
        return 20

    def compute(self, case: Case) -> Values:
        assert case.real is not None
        real, features = case.real, as_features(case.generated, "generated", least=20)
        subsets = [one.to(features.device) for one in nested_subsets(len(features))]

        def distance(kept: Tensor) -> float | None:
            parts = [one[kept[one]] for one in subsets]
            if min(map(len, parts)) < 2:  # the fewest with a covariance
                return None
            return extrapolated_distance(real, features, parts)

        return {case.measure.columns[0]: _known(replicated(case.groups, distance))}


class InceptionScore(Kind):
    """Inception score: its mean and its spread over the parts, which gets no error."""

    output = "logits"
    options = frozenset({"output", "splits", "split_size"})
    trend = "IS rises"

    def minimum(self, options: Mapping[str, Any]) -> int:
        return int(options.get("splits", 1))

    def compute(self, case: Case) -> Values:
        options = case.measure.options
        size = options.get("split_size")  # ADM's parts are in the given order
        check_finite(case.generated, "logits")
        log_p = case.generated.double().log_softmax(1)
        order = sample_order(len(log_p), shuffle=size is None).to(log_p.device)

        splits = options.get("splits", 10)

        def score(kept: Tensor) -> tuple[float, float] | None:
            rows = order[kept[order]]
            if size is None and len(rows) < splits:
                return None
            return split_scores(log_p[rows], splits, size)

        return _with_spread(case, score)


class Kernel(Kind):
    """Kernel distance: its mean and its spread over the subsets, which gets no error."""

    options = frozenset({"output", "subset_size"})
    needs_real_features = True

    def minimum(self, options: Mapping[str, Any]) -> int:
        return int(options.get("subset_size", 1000))

    def compute(self, case: Case) -> Values:
        assert case.real is not None and case.real.features is not None
        size = self.minimum(case.measure.options)
        real = as_features(case.real.features, "real", least=size)
        generated = as_features(case.generated, "generated", least=size)
        check_same_dimension(real, generated)
        draws = kernel_draws(len(real), len(generated), SUBSETS, size)
        drawn = [(a.to(real.device), b.to(real.device)) for a, b in draws]

        def distance(kept: Tensor) -> tuple[float, float] | None:
            pairs = [(a, b[kept[b]]) for a, b in drawn]
            if min(len(b) for _, b in pairs) < 2:  # the fewest of an unbiased estimate
                return None
            return kernel_distances(real, generated, pairs)

        return _with_spread(case, distance)


class Neighbours(Kind):
    """Precision, recall, density, coverage: the columns that the measure names."""

    options = frozenset({"output", "k", "strict", "reduced"})
    needs_real_features = True

    def minimum(self, options: Mapping[str, Any]) -> int:
        return int(options["k"]) + 1

    def compute(self, case: Case) -> Values:
        assert case.real is not None and case.real.features is not None
        options = case.measure.options
        k = int(options["k"])
        real, generated, part = case.real.features, case.generated, case.groups
        if "reduced" in options:
            most = min(options["reduced"], len(real), len(generated))
            rows = _reduced(torch.arange(len(generated)), most)
            real, generated, part = _reduced(real, most), generated[rows], part[rows]
        part, order = part.sort(stable=True)  # membership takes contiguous groups
        groups = int(case.groups.max()) + 1
        sizes = part.bincount(minlength=groups)
        is_enough = groups == 1 or bool(sizes.min() > 0 and len(part) - sizes.max() > k)
        if not is_enough:
            part = torch.zeros_like(part)
        who = membership(
            real=real,
            generated=generated[order],
            k=k,
            strict=options.get("strict", False),
            groups=part,
            memory=case.memory,
        )
        kept = [torch.ones_like(who.group, dtype=torch.bool), *kept_without_each(who.group)]
        shares = {
            "precision": [_mean(who.precise[rows]) for rows in kept],
            "recall": [_mean(row) for row in who.recalled],
            "density": [_mean(who.inside[rows]) / k for rows in kept],
            "coverage": [_mean(row) for row in who.covered],
        }
        unknown: list[float | None] = [] if is_enough else [None] * groups
        return {
            name: (shares[name][0], unknown or list(shares[name][1:]))
            for name in case.measure.columns
        }


class Accuracy(Kind):
    """Share of images that the classifier takes for the class asked for."""

    output = "logits"
    needs_labels = True

    def compute(self, case: Case) -> Values:
        assert case.labels is not None
        right = case.generated.argmax(1) == case.labels
        return {
            case.measure.columns[0]: _known(
                replicated(case.groups, lambda kept: _mean(right[kept]))
            ),
        }


KINDS: dict[str, Kind] = {
    "fd": Frechet(),
    "fd_infinity": FrechetInfinity(),
    "is": InceptionScore(),
    "kid": Kernel(),
    "neighbours": Neighbours(),
    "accuracy": Accuracy(),
}


@dataclass(frozen=True)
class Measure:
    """One computation on the output of one extractor, and the columns it fills."""

    kind: str  # a key of KINDS
    extractor: str
    columns: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        unknown = sorted(set(self.options) - self.rule.options)
        if unknown:
            raise ValueError(
                f"{self.kind} has no option {unknown[0]!r}: "
                f"choose among {', '.join(sorted(self.rule.options))}"
            )
        for name in sorted({*COUNTS} & {*self.options}):
            whole_number(self.options[name], name, least=1)

    @property
    def rule(self) -> Kind:
        """What the measure needs, and its computation."""
        return KINDS[self.kind]

    @property
    def output(self) -> str:
        """The extractor's output that is measured."""
        return str(self.options.get("output", self.rule.output))

    @property
    def statistics(self) -> str:
        """The name of the statistics in a reference."""
        is_main = self.output in ("features", "logits")
        return self.extractor if is_main else f"{self.extractor}-{self.output}"

    def undefined(self, n: int, real: Statistics | None, labels: Tensor | None) -> str | None:
        """Say why the measure of n images has no value; None: it has one."""
        if self.rule.needs_statistics and real is None:
            return f"the reference has no statistics of {self.statistics}"
        if self.rule.needs_real_features:
            if real is None or real.features is None:
                return NO_REAL
            n = min(n, len(real.features))
        if self.rule.needs_labels and labels is None:
            return NO_LABELS
        minimum = self.rule.minimum(self.options)
        return f"{n} images are too few, {minimum} are needed" if n < minimum else None


def _known(values: tuple[float | None, list[float | None]]) -> tuple[float, list[float | None]]:
    """Return a value with its replicates: of all images it is defined."""
    value, replicates = values
    assert value is not None
    return value, replicates


def _with_spread(case: Case, metric: Callable[[Tensor], tuple[float, float] | None]) -> Values:
    """Compute a mean with its replicates, and a spread over parts, which gets none."""
    value, repeats = replicated(case.groups, metric)
    assert value is not None  # of all images
    mean, spread = case.measure.columns
    return {mean: (value[0], [one and one[0] for one in repeats]), spread: (value[1], [])}


def _reduced(rows: Tensor, most: int) -> Tensor:
    """Draw at most so many rows from a fixed seed; they keep their order."""
    if len(rows) <= most:
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
    return rows[drawn.sort().values]


def _mean(values: Tensor) -> float:
    return values.double().mean().item()

"""Evaluate many sets of images with one Evaluator.

It is the protocol, reference, networks and real images, put together and checked once.
Chunks of images, stored or from a sampler, are then all evaluated in the same way.
"""

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erk.runtime.distributed import World
from metrics.chunks import Chunks
from metrics.evaluation import FEW, GROUPS, Evaluation, evaluate_features, floor_of
from metrics.extractors import Extractor, load_extractor
from metrics.extractors.weights import is_random, refuse_random
from metrics.features import (
    ExtractionPlan,
    Features,
    collect,
    image_chunks,
    store_features,
)
from metrics.images import ImageSource, first_shape, open_images
from metrics.measures import NO_REAL, Measure
from metrics.protocols import Protocol, find_protocol
from metrics.reference_files import Reference
from metrics.references import check_extractor, load_reference
from metrics.report import number
from metrics.selection import is_in_seed_order, labels_of
from metrics.store import default_folder


@dataclass(frozen=True)
class Options:
    """How images are evaluated.

    Parameters
    ----------
    weights : extractor -> a file of weights, or "random:SEED", which needs ``allow_random``
    allow_random : for trials, whose numbers measure nothing
    precision : of the extractors, see `load_extractor`
    device : of the extractors and the nearest-neighbour search
    offline : never download
    cache : folder of stored features; None: "features" in the cache folder
    batch : images per network call
    skip_corrupt : leave out images that cannot be read
    groups : groups of images left out in turn for standard errors; 1: no errors
    memory : bytes for the nearest-neighbour search, besides the features
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    allow_random: bool = False
    precision: str = "fp32"
    device: torch.device | str = "cpu"
    offline: bool = False
    cache: str | Path | None = None
    batch: int = 64
    skip_corrupt: bool = False
    groups: int = GROUPS
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.groups < 1 or (self.memory is not None and self.memory < 2**20):
            raise ValueError(
                "the batch and the groups must be at least 1 and the memory at least 1 MiB"
            )
        refuse_random(self.weights, self.allow_random)

    @property
    def folder(self) -> Path:
        """Folder of stored features."""
        return default_folder() if self.cache is None else Path(self.cache)

    def load(self, name: str) -> Extractor:
        """Load an extractor with these options."""
        weights = self.weights.get(name)
        return load_extractor(name, str(self.device), weights, self.offline, self.precision)

    def load_for_reference(self, name: str) -> Extractor:
        """Load an extractor for a reference of real images: on the CPU, in fp32."""
        return load_extractor(name, weights=self.weights.get(name), offline=self.offline)


@dataclass(frozen=True)
class Evaluator:
    """What images are evaluated with; see `load_evaluator`."""

    protocol: Protocol
    reference: Reference | None
    real: ImageSource | None  # real images, for what the reference does not hold
    plan: ExtractionPlan
    real_plan: ExtractionPlan  # of the real images
    options: Options

    @classmethod
    def without_networks(
        cls, protocol: Protocol, reference: Reference | None, options: Options
    ) -> "Evaluator":
        """Build an Evaluator of features that were extracted already."""
        plan = ExtractionPlan({}, {}, None)
        return cls(protocol, reference, None, plan, plan, options)

    def extract_real(self, world: World) -> Features | None:
        """Extract the features of the real images; None where none are needed, and on rank > 0."""
        if self.real is None or not self.real_plan.extractors:
            return None
        chunks = image_chunks(self.real, self.real_plan)
        return collect(self.real_plan, chunks, world, len(self.real.names), "Real images")

    def extract(self, chunks: Chunks, world: World, total: int) -> Features | None:
        """Extract the features of ``total`` images that come in chunks; None on rank > 0."""
        return collect(self.plan, chunks, world, total)

    def extract_shard(
        self, chunks: Chunks, world: World, total: int, shard: tuple[int, int]
    ) -> int:
        """Store the features of every n-th chunk for the shard (i, n), of real images too.

        Returns the number of images of this process. A later `extract` of all chunks finds them.
        """
        rank, size = shard[0] * world.size + world.rank, shard[1] * world.size
        if self.real is not None and self.real_plan.extractors:
            real = image_chunks(self.real, self.real_plan)(rank, size)
            count = len(self.real.names) // shard[1]
            deque(store_features(self.real_plan, real, world, count), maxlen=0)
        stored = store_features(self.plan, chunks(rank, size), world, total // shard[1])
        return sum(chunk.size for chunk in stored)

    def evaluate(
        self,
        features: Features,
        real: Features | None = None,
        labels: Sequence[int] | Tensor | None = None,
        in_seed_order: bool = False,
    ) -> Evaluation:
        """Evaluate features by the protocol.

        ``real``: from `extract_real`; ``labels``: the classes asked for, one per image of the set,
        where the features' metadata do not hold them; ``in_seed_order``: see `evaluate_features`.
        """
        asked = features.metadata.get("labels")
        if asked is None and labels is not None:
            asked = torch.as_tensor(labels)[features.index]
        evaluation = evaluate_features(
            features,
            self.protocol,
            self.reference,
            real=None if real is None else real.outputs,
            labels=asked,
            groups=self.options.groups,
            in_seed_order=in_seed_order,
            memory=self.options.memory,
            device=self.options.device,
        )
        details = self._details(real)
        details |= floor_of(self.protocol, self.reference, features.n, asked)
        caveats = self._caveats(evaluation, features, details)
        return replace(evaluation, details=details, caveats=caveats)

    def evaluate_source(
        self,
        source: ImageSource,
        features: Features,
        real: Features | None = None,
        in_seed_order: bool | None = None,
        labels: Sequence[int] | Tensor | None = None,
    ) -> Evaluation:
        """Evaluate the features of stored images; what the source says of them becomes notes.

        ``in_seed_order``, ``labels``: None: as the source says.
        """
        if in_seed_order is None:
            in_seed_order = is_in_seed_order(source)
        labels = self.labels_of(source) if labels is None else labels
        one = self.evaluate(features, real, labels, in_seed_order)
        return replace(one, caveats=[*source.notes, *one.caveats])

    def labels_of(self, source: ImageSource) -> list[int] | None:
        """Return the classes asked for, if the protocol uses them and the source knows them."""
        if not self.protocol.needs_labels:
            return None
        classes = [getattr(one, "classes", None) for one in self.plan.extractors.values()]
        return labels_of(source, next((one for one in classes if one is not None), None))

    def check_size(self, source: ImageSource) -> None:
        """Raise ValueError if images differ in size from those that they are compared with."""
        skip_corrupt = self.plan.skip_corrupt
        height, width, _ = first_shape(source, skip_corrupt)
        sizes: dict[str, tuple[int, ...]] = {}
        if self.reference is not None and self.reference.image_size is not None:
            sizes[f"the reference {self.reference.name}"] = (self.reference.image_size,) * 2
        if self.real is not None:
            sizes[str(self.real.path)] = first_shape(self.real, skip_corrupt)[:2]
        for name, size in sizes.items():
            if size != (height, width):
                raise ValueError(
                    f"{source.path} holds images of {width}x{height} pixels but {name} of "
                    f"{size[1]}x{size[0]}: their numbers would not compare"
                )

    def _details(self, real: Features | None) -> dict[str, Any]:
        statistics = {} if self.reference is None else self.reference.statistics
        return {
            "reference": self.reference and self.reference.name,
            "reference_sha256": self.reference and self.reference.sha256,
            "reference_n": next((one.n for one in statistics.values()), None),
            "real": self.real and str(self.real.path),
            "real_n": None if real is None else real.n,
            "extractors": {name: one.sha256 for name, one in self.plan.extractors.items()},
            "extractor_precision": self.options.precision,
            "groups": self.options.groups,
        }

    def _caveats(
        self, evaluation: Evaluation, features: Features, details: Mapping[str, Any]
    ) -> list[str]:
        reference, caveats = self.reference, []
        if reference is not None and reference.protocol not in (None, self.protocol.name):
            caveats.append(
                f"the reference {reference.name} is meant for protocol {reference.protocol}"
            )
        if any(is_random(sha256) for sha256 in details["extractors"].values()):
            caveats.append("RANDOM WEIGHTS: these numbers measure nothing and must not be reported")
        if self.options.precision != "fp32":
            caveats.append(
                f"extractors computed in {self.options.precision}, references in fp32: see "
                "docs/performance.md"
            )
        return caveats + _caveats_of(evaluation, self.protocol, features, details)


def _caveats_of(
    evaluation: Evaluation, protocol: Protocol, features: Features, details: Mapping[str, Any]
) -> list[str]:
    """Return the limits that follow from the numbers of images."""
    caveats = []
    if "fd_floor" in details:
        drawn = "equally often from each class" if details["fd_floor_balanced"] else "at random"
        floor = number((details["fd_floor"], details["fd_floor_std"]))
        caveats.append(
            f"FD floor {floor}: mean and spread of what as many real images get, drawn {drawn}"
        )
    if evaluation.values.get("is_std") is not None:
        caveats.append("is_std is the spread over the parts of the Inception score, not an error")
    if any(error is not None for error in evaluation.errors.values()):
        caveats.append(
            f"standard errors by leaving out each of {details['groups']} groups of seeds"
        )
    if evaluation.n < FEW:
        caveats.append(
            f"FD falls and IS rises with N: compare these only with {evaluation.n} images"
        )
    for measure in protocol.measures:
        if measure.rule.needs_statistics and measure.extractor in features.outputs:
            caveats += _rank_caveats(measure, features, details["reference_n"])
    if evaluation.values.get("precision") is not None and protocol.note:
        caveats.append(protocol.note)
    return caveats


def _rank_caveats(measure: Measure, features: Features, reference_n: int | None) -> list[str]:
    """Warn of fewer images than dimensions."""
    dim = getattr(features.outputs[measure.extractor], measure.output).shape[1]
    return [
        f"{measure.columns[0]}: the covariance of {n} {what} in {dim} dimensions is "
        "rank-deficient, FD is far above its value at large N"
        for n, what in ((features.n, "images"), (reference_n, "real images"))
        if n is not None and n <= dim
    ]


def load_evaluator(
    reference: str | Path | Reference | None,
    *,
    protocol: Protocol | str | None = None,
    metrics: Sequence[str] | None = None,
    real: str | Path | ImageSource | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    options: Options | None = None,
) -> Evaluator:
    """Load what evaluating against a reference takes, and check that it fits together.

    Parameters
    ----------
    reference : see `load_reference`; None: the ``real`` images alone
    protocol : whose definitions; None: those that the reference is meant for
    metrics : some of the protocol's columns; None: all
    real : real images, for precision and recall where the reference keeps no features
    extractors : loaded extractors, used in place of those that ``options`` would load
    options : see `Options`

    Raises
    ------
    ValueError, OSError
        What is missing or does not fit.
    """
    options, known = options or Options(), extractors or {}
    source = open_images(real) if isinstance(real, str | Path) else real
    rules, loaded = resolve(reference, protocol, metrics, source is not None, known, options)
    return with_extractors(rules, loaded, source, source is not None, known, options)


def resolve(
    reference: str | Path | Reference | None,
    protocol: Protocol | str | None,
    metrics: Sequence[str] | None,
    has_real: bool,
    extractors: Mapping[str, Extractor],
    options: Options,
) -> tuple[Protocol, Reference | None]:
    """Load the reference and find the protocol; ValueError if they do not fit together."""
    if isinstance(reference, str | Path):
        load = functools.cache(options.load_for_reference)
        reference = load_reference(reference, extractors, options.offline, load)
    if reference is None and (protocol is None or not has_real):
        raise ValueError(
            "--ref is missing: say what to compare with, for example --ref imagenet512 or --ref "
            "digits; or compare with real images alone, --real DIR --protocol NAME"
        )
    if protocol is None:
        assert reference is not None
        if reference.protocol is None:
            raise ValueError(
                f"the reference {reference.name} names no protocol: choose one, --protocol NAME"
            )
        protocol = reference.protocol
    rules = find_protocol(protocol) if isinstance(protocol, str) else protocol
    rules = rules.only(metrics)
    if reference is not None and set(rules.statistics()) - set(reference.statistics):
        raise ValueError(
            f"the reference {reference.name} holds statistics of "
            f"{', '.join(reference.statistics)}, but protocol {rules.name} needs "
            f"{', '.join(rules.statistics())}: choose another --protocol or --ref, or some "
            "--metrics"
        )
    return rules, reference


def with_extractors(
    protocol: Protocol,
    reference: Reference | None,
    source: ImageSource | None,
    has_real: bool,
    extractors: Mapping[str, Extractor],
    options: Options,
) -> Evaluator:
    """Load the extractors that the protocol needs and build the Evaluator."""
    usable = [one for one in protocol.measures if has_real or _is_usable(one, reference)]
    if not usable:
        raise ValueError(f"{', '.join(protocol.columns)}: {NO_REAL}")
    wanted = replace(protocol, measures=tuple(usable)).outputs()
    unknown = set(options.weights) - set(wanted)
    if unknown:
        raise ValueError(
            f"weights for {', '.join(sorted(unknown))} are not used here: these metrics use "
            f"{', '.join(wanted) or 'no network'}"
        )
    loaded = {
        name: extractors[name] if name in extractors else options.load(name) for name in wanted
    }
    if reference is not None:
        for one in usable:
            if one.rule.needs_statistics and one.statistics == one.extractor:
                check_extractor(reference, loaded[one.extractor])
    size = None if reference is None else reference.image_size
    plan = ExtractionPlan(
        loaded, wanted, options.folder, options.batch, options.skip_corrupt, options.device, size
    )
    of_real = protocol.outputs(real=reference is not None) if has_real else {}
    real_plan = replace(plan, extractors={one: loaded[one] for one in of_real}, outputs=of_real)
    return Evaluator(protocol, reference, source, plan, real_plan, options)


def _is_usable(measure: Measure, reference: Reference | None) -> bool:
    """Return whether a measure can be computed without real images."""
    if not measure.rule.needs_real_features:
        return True
    known = None if reference is None else reference.statistics.get(measure.statistics)
    return known is not None and known.features is not None

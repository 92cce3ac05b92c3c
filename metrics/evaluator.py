"""Evaluate many sets of images with one Evaluator.

It is the protocol, reference, networks and real images, put together and checked once.
Chunks of images, stored or from a sampler, are then all evaluated in the same way.
"""

import functools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from erk.io.missing import name_missing
from erk.method.arguments import require
from erk.runtime.distributed import World
from metrics.caveats import (
    caveats_of_networks,
    caveats_of_numbers,
    numbers_of_real,
    precision_of,
)
from metrics.chunks import Chunks
from metrics.evaluation import Evaluation, evaluate_features, floor_of
from metrics.extractors import Extractor, check_extractors, download_weights, weights_url
from metrics.extractors.weights import check_same_weights, refuse_unused
from metrics.features import (
    ExtractionPlan,
    Features,
    collect,
    image_chunks,
    size_of,
    store_features,
)
from metrics.images import ImageSource, open_images
from metrics.measures import NO_REAL, Measure
from metrics.options import Options
from metrics.protocols import Protocol, find_protocol, known_protocols
from metrics.reference_files import Reference
from metrics.references import check_extractor, known_references, known_size, load_reference
from metrics.selection import checked_labels, is_in_seed_order, labels_of
from metrics.sizes import Size, check_same_size


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
        refuse_unused(options.weights, ())
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
        Raises ValueError for what does not fit.
        """
        real_size = None if real is None else real.image_size
        sizes = {"the set": features.image_size, "the real images": real_size}
        check_same_size(sizes | self._sizes())
        if real is not None:
            for name, outputs in self.protocol.outputs(real=self.reference is not None).items():
                hashes = {"the real images": real.weights, "the images": features.weights}
                check_same_weights(name, {key: one.get(name) for key, one in hashes.items()})
                for output in outputs:
                    real.output(name, output)
        asked = features.metadata.get("labels")
        if asked is None and labels is not None:
            asked = self._checked(labels, features)[features.index]
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
        real_n = numbers_of_real(self.protocol, self.reference, real)
        details = self._details(features, real, real_n)
        details |= floor_of(self.protocol, self.reference, features.n, asked)
        evaluation = replace(evaluation, details=details)
        caveats = self._caveats(features)
        caveats += caveats_of_numbers(evaluation, self.protocol, features, real_n)
        return replace(evaluation, caveats=caveats)

    def _checked(self, labels: Sequence[int] | Tensor, features: Features) -> Tensor:
        """Return labels of all images of a set, those that could not be read included."""
        total = features.total
        if total is None:
            total = int(features.index.max()) + 1 if features.n else 0
        scored = [one for one in self.protocol.measures if one.rule.needs_labels]
        classes = [features.output(one.extractor, one.output).shape[1] for one in scored]
        return checked_labels(labels, total, min(classes, default=None), "the set")

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

    def labels_of(self, source: ImageSource) -> Tensor | None:
        """Return the classes asked for, if the protocol uses them and the source knows them.

        Raises ValueError for labels that do not fit and that a measure needs. An FD floor does not:
        it is then that of images of any class.
        """
        if not self.protocol.needs_labels and self.protocol.floor is None:
            return None
        counts = [getattr(one, "classes", None) for one in self.plan.extractors.values()]
        classes = next((one for one in counts if one is not None), None)
        labels = labels_of(source, classes)
        if labels is None:
            return None
        try:
            return checked_labels(labels, len(source.names), classes, str(source.path))
        except ValueError:
            if self.protocol.needs_labels:
                raise
            return None

    def check_source(self, source: ImageSource) -> None:
        """Raise ValueError for images of another size than those that they are compared with.

        Also for labels that do not fit, so that nobody waits in vain for the features.
        """
        size = size_of(source, self.plan.skip_corrupt)
        check_same_size({str(source.path): size} | self._sizes())
        self.labels_of(source)

    def _sizes(self) -> dict[str, Size | None]:
        """Return the sizes of the images that a set is compared with, by name."""
        return sizes_of(self.reference, self.real, self.plan.skip_corrupt)

    def _details(
        self, features: Features, real: Features | None, real_n: Mapping[str, int | None]
    ) -> dict[str, Any]:
        counts = set(real_n.values()) if self.reference is not None else set()
        return {
            "reference": self.reference and self.reference.name,
            "reference_sha256": self.reference and self.reference.sha256,
            "reference_n": dict(real_n) if len(counts) > 1 else next(iter(counts), None),
            "real": self.real and str(self.real.path),
            "real_n": None if real is None else real.n,
            "extractors": self._weights(features),
            "extractor_precision": precision_of(self.plan.extractors),
            "groups": self.options.groups,
        }

    def _weights(self, features: Features) -> dict[str, str]:
        """Return extractor -> sha256 of its weights for what the protocol measures, if known."""
        loaded = {name: one.sha256 for name, one in self.plan.extractors.items()}
        known = loaded | features.weights
        return {name: known[name] for name in self.protocol.outputs() if name in known}

    def _caveats(self, features: Features) -> list[str]:
        reference = self.reference
        caveats = caveats_of_networks(self._weights(features), precision_of(self.plan.extractors))
        if reference is None or reference.protocol in (None, self.protocol.name):
            return caveats
        return [
            f"the reference {reference.name} is meant for protocol {reference.protocol}", *caveats
        ]  # fmt: skip


def load_evaluator(
    reference: str | Path | Reference | None,
    *,
    protocol: Protocol | str | None = None,
    metrics: str | Sequence[str] | None = None,
    real: str | Path | ImageSource | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    options: Options | None = None,
) -> Evaluator:
    """Load all that an evaluation against a reference needs, and check that it fits together.

    Parameters
    ----------
    reference
        See `load_reference`; None: the ``real`` images alone.
    protocol
        Name of the definitions of the metrics; None: those for which the reference is meant.
    metrics
        Some of the protocol's metrics; None: all.
    real
        Real images, for precision and recall if the reference has no features.
    extractors
        Loaded extractors to use instead of those that ``options`` would load.
    options
        See `Options`.

    Raises
    ------
    ValueError, OSError
        What is missing or does not fit.
    """
    options, known = Options() if options is None else options, extractors or {}
    require(isinstance(options, Options), "options", "metrics.options.Options", options)
    require(isinstance(real, ImageSource | str | Path | None), "real", "stored images", real)
    source = open_images(real) if isinstance(real, str | Path) else real
    rules, loaded = resolve(reference, protocol, metrics, source is not None, known, options)
    return with_extractors(rules, loaded, source, source is not None, known, options)


def _name_files(
    reference: str | Path | Reference | None,
    protocol: Protocol | str | None,
    metrics: str | Sequence[str] | None,
    has_real: bool,
    extractors: Mapping[str, Extractor],
    options: Options,
) -> None:
    """Name the missing files, see `name_missing`, before a published reference is downloaded."""
    row = known_references().get(str(reference))
    if row is None or not row.is_remote:  # its networks follow once it is read: it names them
        return
    chosen = row.protocol if protocol is None else protocol
    rules = find_protocol(chosen) if isinstance(chosen, str) else chosen
    wanted = _usable(rules.only(metrics), None, has_real).outputs()
    networks = map(weights_url, _published(wanted, extractors, options))
    name_missing([row.statistics, *networks], options.offline)


def resolve(
    reference: str | Path | Reference | None,
    protocol: Protocol | str | None,
    metrics: str | Sequence[str] | None,
    has_real: bool,
    extractors: Mapping[str, Extractor],
    options: Options,
    networks: bool = True,
) -> tuple[Protocol, Reference | None]:
    """Load the reference and find the protocol; ValueError if they do not fit together.

    `networks`: whether the extractors are loaded next, see `with_extractors`.
    """
    require(isinstance(reference, str | Path | Reference | None), "reference", "a path", reference)
    require(isinstance(protocol, str | Protocol | None), "protocol", "a name", protocol)
    check_extractors(extractors)
    if networks:
        _name_files(reference, protocol, metrics, has_real, extractors, options)
    if isinstance(reference, str | Path):
        load = functools.cache(options.load_for_reference)
        reference = load_reference(reference, extractors, options.offline, load)
    if reference is None and not has_real:
        raise ValueError(
            "there is nothing to compare with: give a reference, such as digits or imagenet512, "
            "or real images"
        )
    protocol = protocol or (reference and reference.protocol)
    if protocol is None:
        what = f"the reference {reference.name} names" if reference else "real images name"
        names = ", ".join(known_protocols())
        raise ValueError(f"{what} no protocol: choose one of {names}, such as protocol='edm'")
    rules = find_protocol(protocol) if isinstance(protocol, str) else protocol
    rules = rules.only(metrics)
    if reference is not None and set(rules.statistics()) - set(reference.statistics):
        raise ValueError(
            f"the reference {reference.name} holds statistics of "
            f"{', '.join(reference.statistics)}, but protocol {rules.name} needs "
            f"{', '.join(rules.statistics())}: choose another protocol or reference, or other "
            "metrics"
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
    usable = _usable(protocol, reference, has_real)
    if not usable.measures:
        raise ValueError(f"{', '.join(protocol.columns)}: {NO_REAL}")
    wanted = usable.outputs()
    refuse_unused(options.weights, wanted)
    # random weights fit no reference of others
    download_weights(_published(wanted, extractors, options), options.offline, reference is None)
    loaded = {
        name: extractors[name] if name in extractors else options.load(name) for name in wanted
    }
    if reference is not None:
        for one in usable.measures:
            if one.rule.needs_statistics and one.statistics == one.extractor:
                check_extractor(reference, loaded[one.extractor])
    check_same_size(sizes := sizes_of(reference, source, options.skip_corrupt))
    size = next((one for one in sizes.values() if one is not None), None)
    plan = ExtractionPlan(
        loaded, wanted, options.folder, options.batch, options.skip_corrupt, options.device, size
    )
    of_real = protocol.outputs(real=reference is not None) if has_real else {}
    real_plan = replace(plan, extractors={one: loaded[one] for one in of_real}, outputs=of_real)
    return Evaluator(protocol, reference, source, plan, real_plan, options)


def sizes_of(
    reference: str | Path | Reference | None, real: ImageSource | None, skip_corrupt: bool
) -> dict[str, Size | None]:
    """Return the sizes of real images by name, as far as they are known before a download."""
    sizes: dict[str, Size | None] = {}
    if reference is not None:
        name = reference.name if isinstance(reference, Reference) else str(reference)
        sizes[f"the reference {name}"] = known_size(reference)
    if real is not None:
        sizes[str(real.path)] = size_of(real, skip_corrupt)
    return sizes


def _usable(protocol: Protocol, reference: Reference | None, has_real: bool) -> Protocol:
    """Keep the measures that can be computed."""
    usable = [one for one in protocol.measures if has_real or _is_usable(one, reference)]
    return replace(protocol, measures=tuple(usable))


def _published(
    wanted: Iterable[str], extractors: Mapping[str, Extractor], options: Options
) -> list[str]:
    """Return the extractors whose published weights have to be loaded."""
    return [one for one in wanted if one not in {*extractors, *options.weights}]


def _is_usable(measure: Measure, reference: Reference | None) -> bool:
    """Return whether a measure can be computed without real images."""
    if not measure.rule.needs_real_features:
        return True
    known = None if reference is None else reference.statistics.get(measure.statistics)
    return known is not None and known.features is not None

"""Evaluate images in one call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from erk.method.arguments import require
from erk.runtime.distributed import World
from metrics.chunks import Batches, check_headers
from metrics.evaluation import Evaluation
from metrics.evaluator import Evaluator, resolve, sizes_of, with_extractors
from metrics.extractors import Extractor, check_extractors
from metrics.features import (
    IMAGES,
    ExtractionPlan,
    Features,
    Images,
    collect,
    extract,
    image_chunks,
    opened,
    size_of,
)
from metrics.images import ImageSource
from metrics.npz import array_names
from metrics.options import Options
from metrics.protocols import Protocol
from metrics.reference_files import Reference
from metrics.references import known_references
from metrics.sizes import Size, check_same_size

Opened: TypeAlias = ImageSource | Batches | Features | None
"""Images, stored or in memory, whose size is known; or their features."""


def evaluate(
    images: Images | Features,
    reference: str | Path | Reference | Images | Features | None,
    protocol: Protocol | str | None = None,
    *,
    metrics: str | Sequence[str] | None = None,
    real: Images | Features | None = None,
    labels: Sequence[int] | Tensor | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate images against a reference: FID, precision, recall and more, in one call.

    Parameters
    ----------
    images
        Folder, .zip, .npz, uint8 tensor [N, C, H, W], an iterable of such tensors, or features from
        `extract`.
    reference
        Name ("imagenet512"), address or file of statistics, or a Reference; or real images in the
        forms of ``images``, with which a protocol is required.
    protocol
        Name of the definitions of the metrics (configs/protocols.yaml); None: those for which the
        reference is meant.
    metrics
        Some of the protocol's metrics, as a list or one text ("fid,is"); None: all.
    real
        Real images in addition to a reference of statistics, for precision and recall.
    labels
        Integers [N], the requested classes, one per image of the set (including images that cannot
        be read); None: those that are stored with the images, if any.
    extractors
        Name -> loaded extractor, so that a training loop loads each network once.
    options
        Fields of `metrics.options.Options`: device, cache, batch, groups, ...; features of images
        in memory are stored only if ``cache`` is given.

    Returns
    -------
    Evaluation
        ``.values``, ``.errors``, ``.notes``, ``.to_dict()``.

    Raises
    ------
    ValueError, OSError
        If something is missing or does not fit: image size, labels, networks or real images.
    """
    require(images is not None, "images", IMAGES, images)
    chosen, known = _options(options), {} if extractors is None else extractors
    check_extractors(known)
    again = real if _is_reference(reference) else reference
    if again is images and isinstance(images, Iterator):
        raise ValueError(
            "the images and the real ones are one iterator, which gives each batch once: give two, "
            "or a list"
        )
    statistics: Any = reference if _is_reference(reference) else None
    if real is not None and statistics is not reference:
        raise ValueError("the reference is real images already: leave out real, or join the two")
    generated = _opened(images)
    given: Any = real if statistics is reference else reference
    compared = _opened(given)
    _check_sizes(generated, compared, statistics, chosen)  # before a download
    for one in (generated, compared):
        if isinstance(one, ImageSource):
            check_headers(one, chosen.skip_corrupt)
    has_real = compared is not None
    are_features = isinstance(generated, Features)
    are_features = are_features and (not has_real or isinstance(compared, Features))
    rules, loaded = resolve(
        statistics, protocol, metrics, has_real, known, chosen, networks=not are_features
    )
    _check_sizes(generated, compared, loaded, chosen)
    source = compared if isinstance(compared, ImageSource) else None
    if are_features:
        evaluator = Evaluator.without_networks(rules, loaded, chosen)
    else:
        evaluator = with_extractors(rules, loaded, source, has_real, known, chosen)
    if isinstance(generated, ImageSource):
        evaluator.check_source(generated)
    real_features = _features(evaluator, evaluator.real_plan, compared)
    features = _features(evaluator, evaluator.plan, generated)
    assert features is not None
    if isinstance(generated, ImageSource):
        return evaluator.evaluate_source(generated, features, real_features, labels=labels)
    return evaluator.evaluate(features, real_features, labels)


def _options(values: dict[str, Any]) -> Options:
    """Return the options. Raises TypeError, as Python does for an unknown argument, ValueError."""
    names = [one.name for one in fields(Options)]
    unknown = next((name for name in values if name not in names), None)
    if unknown is not None:
        raise TypeError(
            f"metrics.evaluate() has no argument {unknown!r}: besides the first ones choose among "
            f"{', '.join(names)}"
        )
    return Options(**values)


def _is_reference(value: Any) -> bool:
    """Return whether a value names or is statistics; False: it is images, or their features."""
    if value is None or isinstance(value, Reference):
        return True
    if not isinstance(value, str | Path):
        return False
    path = Path(value)
    if str(value) in known_references() or "://" in str(value):
        return True
    if path.is_dir() or path.suffix.lower() == ".zip":
        return False
    names = array_names(path) if path.suffix.lower() == ".npz" and path.is_file() else []
    return "images" not in names and ("arr_0" not in names or "mu" in names)


def _opened(images: Images | Features | None) -> Opened:
    return images if images is None or isinstance(images, Features) else opened(images)


def _check_sizes(
    images: Opened, real: Opened, reference: str | Path | Reference | None, options: Options
) -> None:
    """Raise ValueError if images and what they are compared with differ in size."""
    sizes: dict[str, Size | None] = {}
    for name, one in (("the set", images), ("the real images", real)):
        if isinstance(one, Features):
            sizes[name] = one.image_size
        elif one is not None:
            shown = str(one.path) if isinstance(one, ImageSource) else name
            sizes[shown] = size_of(one, options.skip_corrupt)
    check_same_size(sizes | sizes_of(reference, None, options.skip_corrupt))


def _features(evaluator: Evaluator, plan: ExtractionPlan, images: Opened) -> Features | None:
    """Return the features of images by a plan; None where there are no images or no networks."""
    if images is None or isinstance(images, Features):
        return images
    if not plan.extractors:
        return None
    options = evaluator.options
    if isinstance(images, ImageSource):
        chunks, alone = image_chunks(images, plan), World(0, 1, torch.device(options.device))
        features = collect(plan, chunks, alone, len(images.names))
        assert features is not None
        return replace(features, image_size=size_of(images, plan.skip_corrupt))
    return extract(
        images, plan.extractors, options.cache, batch=options.batch, device=options.device
    )

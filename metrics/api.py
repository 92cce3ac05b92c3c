"""Evaluate images in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from erk.runtime.distributed import World
from metrics.evaluation import Evaluation
from metrics.evaluator import Evaluator, Options, resolve, with_extractors
from metrics.extractors import Extractor
from metrics.features import Features, Images, extract, image_chunks
from metrics.images import BUNDLED, ImageSource, open_images
from metrics.npz import array_names
from metrics.protocols import Protocol
from metrics.reference_files import Reference
from metrics.references import known_references

Opened: TypeAlias = ImageSource | Any
"""A source, or images in memory as they were given."""


def evaluate(
    images: Images | Features,
    reference: str | Path | Reference | Images | Features | None,
    protocol: Protocol | str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    real: Images | Features | None = None,
    labels: Sequence[int] | Tensor | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate images against a reference: FID, precision, recall and more, in one call.

    Parameters
    ----------
    images : folder, .zip, .npz, uint8 tensor [N, C, H, W], an iterable of such batches, or
        features from `extract`
    reference : name ("imagenet512"), address or file of statistics, Reference; or real images in
        the forms of ``images``, which then need a protocol
    protocol : whose definitions, see configs/protocols.yaml; None: those that the reference is
        meant for
    metrics : some of the protocol's columns; None: all
    real : real images besides a reference of statistics, for precision and recall
    labels : int64 [N], the classes asked for; stored images may know theirs
    extractors : name -> loaded extractor, so that a training loop loads each network once
    options : fields of `metrics.evaluator.Options`: device, cache, batch, groups, ...; features of
        images in memory are stored only if ``cache`` is given

    Returns
    -------
    Evaluation
        ``.values``, ``.errors``, ``.notes``, ``.to_dict()``.

    Raises
    ------
    ValueError, OSError
        What is missing or does not fit.
    """
    chosen, known = Options(**options), dict(extractors or {})
    statistics: Any = reference if _is_reference(reference) else None
    opened, opened_real = _opened(images), _opened(real if statistics is reference else reference)
    has_real = opened_real is not None
    rules, loaded = resolve(statistics, protocol, metrics, has_real, known, chosen)
    source = opened_real if isinstance(opened_real, ImageSource) else None
    if _are_features(opened) and (not has_real or _are_features(opened_real)):
        evaluator = Evaluator.without_networks(rules, loaded, chosen)
    else:
        evaluator = with_extractors(rules, loaded, source, has_real, known, chosen)
    real_features = _real_features(evaluator, opened_real)
    features = _features(evaluator, opened)
    if isinstance(opened, ImageSource):
        return evaluator.evaluate_source(opened, features, real_features, labels=labels)
    return evaluator.evaluate(features, real_features, labels)


def _is_reference(value: Any) -> bool:
    """Return whether a value names or is statistics; False: it is images, or their features."""
    if value is None or isinstance(value, Reference):
        return True
    if not isinstance(value, str | Path):
        return False
    path = Path(value)
    if str(value) in known_references() or "://" in str(value):
        return True
    if str(value).startswith(BUNDLED) or path.is_dir() or path.suffix.lower() == ".zip":
        return False
    names = array_names(path) if path.suffix.lower() == ".npz" and path.is_file() else []
    return "images" not in names and ("arr_0" not in names or "mu" in names)


def _opened(images: Any) -> Opened:
    return open_images(images) if isinstance(images, str | Path) else images


def _are_features(value: Any) -> bool:
    return isinstance(value, Features)


def _alone(evaluator: Evaluator) -> World:
    return World(0, 1, torch.device(evaluator.options.device))


def _features(evaluator: Evaluator, images: Opened) -> Features:
    if isinstance(images, Features):
        return images
    plan, options = evaluator.plan, evaluator.options
    if isinstance(images, ImageSource):
        evaluator.check_size(images)
        chunks = image_chunks(images, plan)
        features = evaluator.extract(chunks, _alone(evaluator), len(images.names))
        assert features is not None
        return features
    return extract(
        images, plan.extractors, options.cache, batch=options.batch, device=options.device
    )


def _real_features(evaluator: Evaluator, real: Opened | None) -> Features | None:
    if real is None or isinstance(real, Features):
        return real
    if isinstance(real, ImageSource):
        return evaluator.extract_real(_alone(evaluator))
    plan, options = evaluator.real_plan, evaluator.options
    if not plan.extractors:
        return None
    return extract(real, plan.extractors, options.cache, batch=options.batch, device=options.device)

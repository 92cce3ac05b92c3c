"""One pass over images: features once, every metric from them, error bars over seed blocks."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics.distances import frechet_distance, inception_score, precision_recall
from metrics.extractors import Extractor, Features
from metrics.references import Reference
from metrics.statistics import check_finite, moments_of

SPLITS = 10  # of the Inception score
METRICS = ("fd", "precision", "recall", "is_mean", "is_std", "accuracy")


class Metrics(NamedTuple):
    """The numbers of one set of images; None where one is not defined."""

    n: int
    fd: float
    precision: float | None  # None: no real features, or n <= k
    recall: float | None
    is_mean: float | None  # None: no logits, or n < splits
    is_std: float | None
    accuracy: float | None  # share recognised as the class asked for; None: no labels


class Result(NamedTuple):
    """Metrics with what they were measured by; the same metrics per seed block."""

    metrics: Metrics
    blocks: tuple[Metrics, ...]  # equal blocks in seed order; (): none
    protocol: str
    k: int
    extractor: str
    extractor_sha256: str
    reference: str
    reference_sha256: str
    reference_n: int | None


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float


def measure(
    batches: Iterable[Tensor],
    extractor: Extractor,
    reference: Reference,
    *,
    k: int = 3,
    labels: Sequence[int] | None = None,
    blocks: int = 1,
) -> Result:
    """Measure images, batches of uint8 [B, C, H, W] in seed order, in one pass.

    ``labels`` are the classes that were asked for, one per image. ``blocks`` > 1 also measures
    that many seed blocks (see ``measure_blocks``). Raises ValueError for fewer than 2 images,
    NaN features, or labels that do not fit.
    """
    found = extract(batches, extractor)
    asked = None if labels is None else torch.tensor(list(labels), dtype=torch.long)
    return Result(
        metrics=measure_features(found, reference, k=k, labels=asked),
        blocks=measure_blocks(found, reference, blocks, k=k, labels=asked) if blocks > 1 else (),
        protocol=extractor.name,
        k=k,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        reference=reference.name,
        reference_sha256=reference.sha256,
        reference_n=reference.n,
    )


def extract(batches: Iterable[Tensor], extractor: Extractor) -> Features:
    """Features [N, D] and logits [N, K] of all images, float32 on the CPU."""
    parts = [extractor(images) for images in batches]
    if not parts:
        raise ValueError("there are no images to measure: give at least 2")
    features = torch.cat([part.features.cpu() for part in parts])
    check_finite(features, f"{extractor.name} features")
    logits = [part.logits.cpu() for part in parts if part.logits is not None]
    return Features(features, torch.cat(logits) if logits else None)


def measure_features(
    found: Features,
    reference: Reference,
    *,
    k: int = 3,
    labels: Tensor | None = None,
    splits: int = SPLITS,
) -> Metrics:
    """Every metric of features [N, D]; labels int64 [N] are the classes asked for."""
    features, logits = found
    n, real = len(features), reference.features
    moments = moments_of(features)
    fd = frechet_distance(moments.mean, moments.cov, reference.mean, reference.cov)
    precision = recall = is_mean = is_std = None
    if real is not None and min(n, len(real)) > k:
        precision, recall = precision_recall(real=real, generated=features, k=k)
    if logits is not None and n >= splits:
        is_mean, is_std = inception_score(logits, splits)
    return Metrics(n, fd, precision, recall, is_mean, is_std, _accuracy(logits, labels, n))


def measure_blocks(
    found: Features,
    reference: Reference,
    blocks: int,
    *,
    k: int = 3,
    labels: Tensor | None = None,
) -> tuple[Metrics, ...]:
    """The metrics of ``blocks`` disjoint blocks of N // blocks images each, in seed order.

    FD rises and recall falls as a block shrinks, so only blocks of one size compare, never a
    block with the whole. The Inception score keeps its split size (10 // blocks splits each).
    Left-over images at the end are unused. Raises ValueError for blocks of fewer than 2 images.
    """
    size = len(found.features) // max(blocks, 1)
    if blocks < 1 or size < 2:
        raise ValueError(
            f"{len(found.features)} images do not fill {blocks} blocks of at least 2: "
            "use fewer blocks or more images"
        )
    cuts = [slice(i * size, (i + 1) * size) for i in range(blocks)]
    return tuple(
        measure_features(
            Features(found.features[cut], None if found.logits is None else found.logits[cut]),
            reference,
            k=k,
            labels=None if labels is None else labels[cut],
            splits=max(1, SPLITS // blocks),
        )
        for cut in cuts
    )


def standard_errors(blocks: Sequence[Metrics]) -> dict[str, float | None]:
    """Standard error of every metric: std over the blocks (divisor B - 1) / sqrt(B).

    It estimates the error of the metric on all images, whose N is B times a block's, and
    overestimates that of an FD near its floor, where the spread falls faster than 1 / sqrt(N).
    None for metrics that were not measured, or with fewer than 2 blocks.
    """
    return {name: _error([getattr(block, name) for block in blocks]) for name in METRICS}


def paired_differences(a: Sequence[Metrics], b: Sequence[Metrics]) -> dict[str, Estimate | None]:
    """Mean of a - b over pairs of blocks of the same seeds, with its standard error.

    What both runs share by their seeds cancels, so small gains show. Raises ValueError if the
    blocks do not pair up, or with fewer than 2 of them.
    """
    if [block.n for block in a] != [block.n for block in b] or len(a) < 2:
        raise ValueError(
            "paired differences need at least 2 blocks of equal sizes from both runs, not "
            f"{[block.n for block in a]} and {[block.n for block in b]}"
        )
    return {
        name: _paired([getattr(x, name) for x in a], [getattr(y, name) for y in b])
        for name in METRICS
    }


def fd_floor(
    reference: Reference, n: int, *, balanced: bool = False, repeats: int = 10, seed: int = 0
) -> Estimate:
    """FD that n perfect samples would get: real images drawn with replacement, to all of them.

    Mean over ``repeats`` seeded draws and the standard deviation of ONE draw (not of the mean):
    below value + error, differences of FD at this n mean nothing. ``balanced`` draws each class
    equally often (n is rounded down to a multiple of the classes). Raises ValueError where the
    reference keeps no features or labels.
    """
    if reference.features is None or (balanced and reference.labels is None) or repeats < 2:
        raise ValueError(
            f"the FD floor of {reference.name} needs real features, labels if balanced, and "
            f"at least 2 repeats (not {repeats})"
        )
    generator = torch.Generator().manual_seed(seed)
    classes = [torch.arange(len(reference.features))]
    if balanced and reference.labels is not None:
        classes = [(reference.labels == c).nonzero()[:, 0] for c in reference.labels.unique()]
    draws = []
    for _ in range(repeats):
        rows = [_draw(members, n // len(classes), generator) for members in classes]
        moments = moments_of(reference.features[torch.cat(rows)])
        draws.append(frechet_distance(moments.mean, moments.cov, reference.mean, reference.cov))
    fds = torch.tensor(draws, dtype=torch.float64)
    return Estimate(fds.mean().item(), fds.std().item())


def to_row(result: Result) -> dict[str, Any]:
    """A result as one flat row: metrics, ``<metric>_se``, block size, protocol and hashes."""
    row: dict[str, Any] = result.metrics._asdict()
    row |= {f"{name}_se": error for name, error in standard_errors(result.blocks).items()}
    row["blocks"] = len(result.blocks)
    row["block_n"] = result.blocks[0].n if result.blocks else None
    return row | {name: getattr(result, name) for name in Result._fields[2:]}


def _accuracy(logits: Tensor | None, labels: Tensor | None, n: int) -> float | None:
    if logits is None or labels is None:
        return None
    if labels.shape != (n,):
        raise ValueError(f"there are {n} images but labels of shape {list(labels.shape)}")
    return (logits.argmax(1) == labels).double().mean().item()


def _error(values: Sequence[float | None]) -> float | None:
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if len(known) < 2 or len(known) < len(values):
        return None
    return (known.std() / len(known) ** 0.5).item()


def _paired(a: Sequence[float | None], b: Sequence[float | None]) -> Estimate | None:
    pairs = zip(a, b, strict=True)
    differences = [x - y for x, y in pairs if x is not None and y is not None]
    error = _error(differences) if len(differences) == len(a) else None
    return None if error is None else Estimate(sum(differences) / len(differences), error)


def _draw(members: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return members[torch.randint(len(members), (n,), generator=generator)]

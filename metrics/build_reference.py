"""Build a reference from real images: mean and covariance under one or more extractors.

The images are shown to the networks once; features are cached, so an interrupted run resumes.
Memory does not grow with the number of images, unless all features are kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from erk.runtime.distributed import gather, join
from erk.runtime.memory import keep_freed_memory
from metrics.chunks import check_headers
from metrics.extractors import download_weights, extractor_names, load_extractor
from metrics.extractors.weights import refuse_random, refuse_unused
from metrics.features import ExtractionPlan, image_chunks, load_features, store_features
from metrics.images import ImageSource, first_shape
from metrics.protocols import default_protocol, find_protocol
from metrics.reference_files import write_reference
from metrics.statistics import Moments, Statistics
from metrics.store import default_folder

SPATIAL = "inception-spatial"

ChunkKeys = list[tuple[int, str, int]]  # (start, key, size), see metrics/chunks.py


def build_reference(
    source: ImageSource,
    dest: Path,
    plan: ExtractionPlan,
    names: Sequence[str],
    *,
    protocol: str | None = None,
    keep_features: bool = False,
) -> str | None:
    """Write the statistics of a set of images to a reference file.

    Parameters
    ----------
    source : ImageSource
        The real images.
    dest : Path
        The .npz file to write.
    plan : ExtractionPlan
        Extractors and cache, from `extraction_plan`.
    names : sequence of str
        The statistics: names of extractors, or inception-spatial.
    protocol : str, optional
        The protocol that the reference is for; None derives it from `names`.
    keep_features : bool
        Also store the features, for precision and recall.

    Returns
    -------
    str or None
        One line on the file; None in all ranks but the first.
    """
    if protocol is not None:
        find_protocol(protocol)
    check_headers(source, plan.skip_corrupt)
    height, width, _ = first_shape(source, plan.skip_corrupt)
    with join(torch.device(plan.device)) as world:
        chunks = image_chunks(source, plan)(world.rank, world.size)
        stored = store_features(plan, chunks, world, len(source.names))
        share = [(c.start, c.key, c.size) for c in stored]
        every = sorted(chunk for part in gather(world, share) for chunk in part)
    if world.rank > 0:
        return None
    statistics, kept = _statistics(plan, every, names, keep_features)
    labels = source.labels if keep_features else None
    protocol = protocol or default_protocol(statistics)
    write_reference(
        dest,
        statistics,
        protocol=protocol,
        labels=None if labels is None else torch.tensor(labels)[kept],
        image_size=height if height == width else (height, width),
    )
    content = f"{len(kept)} images of {width}x{height}, {', '.join(statistics)}"
    return f"{dest}: {content}, protocol {protocol or 'unknown (evaluate needs --protocol)'}"


def extraction_plan(
    names: Sequence[str],
    weights: Mapping[str, str],
    device: torch.device,
    *,
    allow_random: bool = False,
    cache: str | None = None,
    batch: int = 64,
    skip_corrupt: bool = False,
    offline: bool = False,
) -> ExtractionPlan:
    """Load the extractors of some statistics. Raises ValueError or OSError with one sentence."""
    wanted: dict[str, list[str]] = {}
    for name in names:
        network = name.removesuffix("-spatial")
        outputs = wanted.setdefault(network, ["features"])
        if name != network:
            if name not in known_statistics():
                known = ", ".join(known_statistics())
                raise ValueError(f"there are no statistics {name!r}: choose among {known}")
            outputs.append("spatial")
    refuse_random(weights, allow_random)
    refuse_unused(weights, wanted)
    download_weights([name for name in wanted if name not in weights], offline)
    extractors = {
        name: load_extractor(name, str(device), weights.get(name), offline) for name in wanted
    }
    if device.type == "cpu":
        keep_freed_memory()
    folder = default_folder() if cache is None else Path(cache)
    return ExtractionPlan(extractors, wanted, folder, batch, skip_corrupt, device)


def known_statistics() -> tuple[str, ...]:
    """Return the names of all statistics that a reference can hold."""
    return (*extractor_names(), SPATIAL)


def _statistics(
    plan: ExtractionPlan, chunks: ChunkKeys, names: Sequence[str], keep_features: bool
) -> tuple[dict[str, Statistics], list[int]]:
    """Return the statistics by name and the indices of the readable images, chunk by chunk."""
    moments: dict[str, Moments] = {}
    rows: dict[str, list[torch.Tensor]] = {}
    kept: list[int] = []
    for chunk in chunks:
        features = load_features(plan, [chunk])
        kept += features.index.tolist()
        for name, outputs in plan.outputs.items():
            for output in outputs:
                key = SPATIAL if output == "spatial" else name
                if key not in names:
                    continue
                part = getattr(features.outputs[name], output)
                moments.setdefault(key, Moments(part.shape[1])).add(part)
                if keep_features:
                    rows.setdefault(key, []).append(part)
    statistics = {
        key: Statistics(
            sums.mean,
            sums.cov,
            sums.n,
            torch.cat(rows[key]) if keep_features else None,
            plan.extractors[key.removesuffix("-spatial")].sha256,
        )
        for key, sums in moments.items()
    }
    return statistics, kept

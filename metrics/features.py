"""Feature extraction: each image is decoded once and shown to all extractors.

Chunks are the unit of work. Their key names their content, so features that the store holds, from
an earlier run, another process or a shard, are not computed again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from erk.method.arguments import PATHS, require
from erk.runtime.distributed import World, check_device, gather
from erk.runtime.memory import fitting, halved
from erk.runtime.progress import image_bar, within_batch
from metrics.chunks import (
    NO_IMAGES,
    Batches,
    Chunk,
    Chunks,
    ImageBatch,
    Reading,
    source_chunks,
    tensor_chunks,
)
from metrics.extractors import (
    FIELDS,
    Extractor,
    Outputs,
    check_extractors,
    extractor_names,
    output_sizes,
)
from metrics.images import ImageSource, first_shape, open_images
from metrics.sizes import Size, check_same_size
from metrics.statistics import check_finite, whole_number
from metrics.store import holds, load, save

Images: TypeAlias = str | Path | ImageSource | Tensor | Iterable[Tensor]
"""A folder, zip or npz; uint8 images [N, C, H, W]; or batches of them."""

IMAGES = "a folder, a zip, an npz, or uint8 tensors [N, C, H, W]"

Report: TypeAlias = Callable[[int], None]
"""Called with the number of a chunk's images that a network has seen."""


@dataclass(frozen=True)
class Features:
    """Features of a set of images, in order, on the CPU."""

    outputs: dict[str, Outputs]  # by extractor
    index: Tensor  # int64 [n], positions in the set of the images that could be read
    metadata: dict[str, Tensor] = field(default_factory=dict)  # per image, [n] each
    total: int | None = None  # images of the set, with those that could not be read
    image_size: Size | None = None  # of the images; None: not known
    weights: dict[str, str] = field(default_factory=dict)  # extractor -> its sha256, where known

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.index)

    def output(self, extractor: str, name: str = "features") -> Tensor:
        """Return one output of an extractor, [n, D]. Raises ValueError if there is none."""
        values = getattr(self.outputs.get(extractor), name, None)
        if values is None:
            outputs = [f"{key} {one}" for key, part in self.outputs.items() for one in _known(part)]
            known = ", ".join(outputs) or "nothing"
            raise ValueError(
                f"the {extractor} {name} of the images are needed, but {known} were extracted: "
                "extract them too, or choose another protocol or other metrics"
            )
        tensor: Tensor = values
        return tensor


@dataclass(frozen=True)
class ExtractionPlan:
    """The networks that images are shown to, and where their features are stored."""

    extractors: Mapping[str, Extractor]
    outputs: Mapping[str, Sequence[str]]  # extractor -> some of FIELDS
    cache: Path | None  # the store; None: features are not stored
    batch: int = 64  # images per network call
    skip_corrupt: bool = False
    device: torch.device | str = "cpu"  # of the extractors
    image_size: Size | None = None  # that the images must have; None: any

    def __post_init__(self) -> None:
        whole_number(self.batch, "batch", least=1)


def extract(
    images: Images,
    extractors: Mapping[str, Extractor],
    cache: str | Path | None = None,
    *,
    batch: int = 64,
    device: torch.device | str = "cpu",
    skip_corrupt: bool = False,
) -> Features:
    """Extract the features of images with every extractor.

    Parameters
    ----------
    images
        Folder, .zip, .npz, ImageSource, uint8 tensor [N, C, H, W] or an iterable of batches.
    extractors
        Name -> extractor, see `load_extractor`.
    cache
        Folder of stored features, keyed by the images' content and the extractor's weights; None:
        nothing is stored.
    batch
        Stored images per network call; batches of an iterable stay as they are.
    device
        Device of the extractors.
    skip_corrupt
        Skip images that cannot be read.

    Raises
    ------
    ValueError
        For no images, broken images, NaN features or images that an extractor does not take.
    """
    images = opened(images)
    check_extractors(extractors)
    check_device(device)
    require(cache is None or isinstance(cache, PATHS), "cache", "a path", cache)
    outputs = {name: default_outputs(name) for name in extractors}
    folder = None if cache is None else Path(cache)
    plan = ExtractionPlan(extractors, outputs, folder, batch, skip_corrupt, device)
    alone, size = World(0, 1, torch.device(device)), size_of(images, skip_corrupt)
    if isinstance(images, ImageSource):
        features = collect(plan, image_chunks(images, plan), alone, len(images.names))
    elif folder is None:
        features = _in_memory(images, extractors)
    else:
        features = collect(plan, lambda *_: tensor_chunks(images), alone, 0)
    if features is None or not features.n:
        raise ValueError(NO_IMAGES)
    return replace(features, image_size=size)


def size_of(images: ImageSource | Batches, skip_corrupt: bool = False) -> Size:
    """Return the size of the first image; Batches check the others, and so do chunks."""
    if isinstance(images, Batches):
        return images.size
    height, width, _ = first_shape(images, skip_corrupt)
    return height, width


def opened(images: Images) -> ImageSource | Batches:
    """Return images as a source or as batches. Raises what `open_images` and `Batches` raise."""
    if isinstance(images, str | Path):
        return open_images(images)
    is_set = isinstance(images, Iterable) and getattr(images, "ndim", 1) > 0
    require(is_set, "images", IMAGES, images)
    return images if isinstance(images, ImageSource | Batches) else Batches(images)


def default_outputs(name: str) -> tuple[str, ...]:
    """Return all outputs of a known extractor; the features of any other."""
    return tuple(output_sizes(name)) if name in extractor_names() else ("features",)


def _in_memory(images: Iterable[Tensor], extractors: Mapping[str, Extractor]) -> Features:
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in extractors}
    n = 0
    for batch in images:
        n += len(batch)
        for name, extractor in extractors.items():
            parts[name].append(extractor(batch)._asdict())
    outputs = {name: _joined(some) for name, some in parts.items()}
    for name, one in outputs.items():
        check_finite(one.features, f"{name} features")
    weights = {name: one.sha256 for name, one in extractors.items()}
    return Features(outputs, torch.arange(n), total=n, weights=weights)


def collect(
    plan: ExtractionPlan,
    chunks: Chunks,
    world: World,
    total: int,
    description: str = "Measuring",
) -> Features | None:
    """Extract the features of all chunks, and return them in the first process, None in others.

    ``total``: number of images of all processes, for the progress bar.
    """
    if plan.cache is None:
        if world.size > 1:
            raise ValueError("several processes share features by a store: give its folder, cache")
        parts = [
            (chunk.start, chunk.size, dict(_chunk_outputs(plan, chunk, list(plan.extractors))))
            for chunk in chunks(0, 1)
        ]
        return _assembled(plan, parts)
    shares = [
        (chunk.start, chunk.key, chunk.size)
        for chunk in store_features(plan, chunks(world.rank, world.size), world, total, description)
    ]
    everything = sorted(chunk for share in gather(world, shares) for chunk in share)
    return load_features(plan, everything) if world.rank == 0 else None


def store_features(
    plan: ExtractionPlan,
    chunks: Iterable[Chunk],
    world: World,
    total: int,
    description: str = "Measuring",
) -> Iterator[Chunk]:
    """Extract and store the features that the store lacks; yield each chunk that it then holds.

    Raises ValueError for NaN features, broken images (unless they are skipped) and images that
    an extractor does not take.
    """
    assert plan.cache is not None
    with image_bar(-(-total // world.size), description, world.rank == 0) as bar:
        for chunk in chunks:
            for name, tensors in _chunk_outputs(plan, chunk, _missing(plan, chunk)):
                save(plan.cache, plan.extractors[name], chunk.key, tensors)
            bar.finish(chunk.size)
            yield chunk


def load_features(plan: ExtractionPlan, chunks: Sequence[tuple[int, str, int]]) -> Features:
    """Load the features of chunks (start, key, size) from the store. Raises FileNotFoundError."""
    assert plan.cache is not None
    folder = plan.cache
    parts = [
        (start, size, {name: load(folder, one, key) for name, one in plan.extractors.items()})
        for start, key, size in chunks
    ]
    return _assembled(plan, parts)


def _assembled(
    plan: ExtractionPlan, parts: Sequence[tuple[int, int, dict[str, dict[str, Tensor]]]]
) -> Features:
    """Join the tensors of chunks, each with its start, its size and its tensors per extractor."""
    outputs, index, metadata = {}, torch.empty(0, dtype=torch.long), {}
    for name in plan.extractors:
        some = [(start, tensors[name]) for start, _, tensors in parts]
        full = [tensors for _, tensors in some if len(tensors["kept"])]
        fields = plan.outputs[name]
        if any(one not in tensors for tensors in full for one in fields):
            raise FileNotFoundError(
                f"features in {plan.cache} were replaced by another run: run this one again"
            )
        if not full:
            raise ValueError("no image could be read: nothing can be measured")
        outputs[name] = _joined([{key: one.get(key) for key in fields} for one in full])
        index = torch.cat([tensors["kept"] + start for start, tensors in some])
        names = set(full[0]) - {*FIELDS, "kept"}
        metadata = {key: torch.cat([tensors[key] for tensors in full]) for key in names}
    weights = {name: getattr(one, "sha256", "") for name, one in plan.extractors.items()}
    return Features(outputs, index, metadata, sum(n for _, n, _ in parts), weights=weights)


def image_chunks(source: ImageSource, plan: ExtractionPlan, workers: int | None = None) -> Chunks:
    """Split stored images into chunks; images are decoded only if the store lacks features."""
    reading = Reading(
        skip_corrupt=plan.skip_corrupt,
        pinned=torch.device(plan.device).type == "cuda",
        needed=lambda chunk: bool(_missing(plan, chunk)),
        workers=workers,
    )
    return source_chunks(source, reading)


def _missing(plan: ExtractionPlan, chunk: Chunk) -> list[str]:
    """Name the extractors whose features of the chunk are not in the store."""
    if plan.cache is None:
        return list(plan.extractors)
    rows = None if plan.skip_corrupt else chunk.size
    return [
        name
        for name, extractor in plan.extractors.items()
        if not holds(plan.cache, extractor, chunk.key, plan.outputs[name], rows)
    ]


def _chunk_outputs(
    plan: ExtractionPlan, chunk: Chunk, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Extract the features of one chunk; yield extractor and its tensors, as they are stored."""
    if names:
        batch = _on_device(plan, ImageBatch(*chunk.read()))
        for number, name in enumerate(names):
            finished = number * chunk.size

            def report(images: int, before: int = finished) -> None:
                within_batch((before + images) / len(names))

            yield name, _outputs(plan, name, chunk, batch, report)


def _on_device(plan: ExtractionPlan, batch: ImageBatch) -> ImageBatch:
    """Move images to the networks' device; ValueError for images of another size."""
    size = batch.images.shape[2], batch.images.shape[3]
    check_same_size({"the set": size, "what it is compared with": plan.image_size})
    return batch._replace(images=batch.images.to(plan.device, non_blocking=True))


def _outputs(
    plan: ExtractionPlan, name: str, chunk: Chunk, batch: ImageBatch, report: Report
) -> dict[str, Tensor]:
    if not len(batch.positions):
        return {"kept": batch.positions}
    joined = _joined(_network_outputs(plan.extractors[name], batch.images, plan.batch, report))
    check_finite(joined.features, f"{name} features of images from number {chunk.start} on")
    tensors = {key: getattr(joined, key) for key in plan.outputs[name]}
    return tensors | {"kept": batch.positions} | batch.metadata


def _network_outputs(
    extractor: Extractor, images: Tensor, batch: int, report: Report
) -> list[dict[str, Any]]:
    """Run the network on ``batch`` images at a time, or on as many as fit into memory."""

    def parts() -> list[dict[str, Any]]:
        outputs = []
        for number, part in enumerate(images.split(batch), 1):
            outputs.append(extractor(part)._asdict())
            report(min(number * batch, len(images)))
        return outputs

    batch = min(batch, len(images))
    while (outputs := fitting(parts)) is None:
        batch = halved(batch, f"measuring with {extractor.name}")
    return outputs


def _joined(parts: Sequence[Mapping[str, Tensor | None]]) -> Outputs:
    """Concatenate outputs on the CPU; fields that are None or absent stay None."""
    names = [name for name in FIELDS if parts[0].get(name) is not None]
    return Outputs(**{name: torch.cat([_cpu(part[name]) for part in parts]) for name in names})


def _known(outputs: Outputs) -> list[str]:
    """Name the fields that are not None."""
    return [name for name in FIELDS if getattr(outputs, name) is not None]


def _cpu(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.cpu()

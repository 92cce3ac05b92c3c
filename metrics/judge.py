"""A judge: protocol, reference, networks and real images, put together and checked once.

Whatever offers chunks of images, stored ones or a sampler's, is then measured in the same way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from erk.runtime.distributed import World
from metrics.evaluation import GROUPS, NO_REAL, Result, measure
from metrics.extraction import Chunk, Found, Pass, collect, first_shape, image_chunks, work
from metrics.extractors import load_extractor
from metrics.extractors.weights import refuse_random
from metrics.images import ImageSource, open_images
from metrics.protocols import Measure, Protocol, find_protocol
from metrics.references import Reference, check_extractor, load_reference
from metrics.store import default_folder

Chunks = Callable[[int, int], Iterable[Chunk]]
"""(rank, size) -> that process's share of the chunks."""


class Judge(NamedTuple):
    """Everything that images are measured with."""

    protocol: Protocol
    reference: Reference | None
    real: ImageSource | None  # real images, for what the reference does not hold
    how: Pass
    real_how: Pass  # of the real images
    device: torch.device
    groups: int
    memory: int | None
    precision: str  # what the extractors compute in


class Verdict(NamedTuple):
    """What a judge says of a set of images."""

    result: Result
    found: Found
    labels: Tensor | None  # int64 [n], the classes asked for; None: not known
    real_n: int | None  # real images that were read; None: none were


def load_judge(
    ref: str | None,
    *,
    protocol: str | None = None,
    metrics: Sequence[str] | None = None,
    real: str | None = None,
    weights: Mapping[str, str] | None = None,
    allow_random: bool = False,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    batch: int = 64,
    skip_corrupt: bool = False,
    offline: bool = False,
    groups: int = GROUPS,
    memory: int | None = None,
    precision: str = "fp32",
) -> Judge:
    """Load what it takes to measure against ``ref``, and check that it fits together.

    ``ref``: a name or a file (``load_reference``); None: the ``real`` images alone. ``protocol``:
    None for the one that the reference is made for. ``metrics``: some of its columns. ``weights``:
    extractor -> a file, or "random:SEED", which needs ``allow_random``. ``cache``: the store of
    features. ``precision``: what the extractors compute in, see ``load_extractor``. Raises
    ValueError or OSError with a sentence on what is missing or does not fit.
    """
    chosen = dict(weights or {})
    if batch < 1 or groups < 1 or (memory is not None and memory < 2**20):
        raise ValueError(
            "the batch and the groups must be at least 1 and the memory at least 1 MiB"
        )
    refuse_random(chosen, allow_random)
    opened = None if real is None else open_images(real)
    reference = None
    if ref is not None:
        reference = load_reference(
            ref, {"digits": load_extractor("digits", weights=chosen.get("digits"))}, offline
        )
    rules = _rules(reference, protocol, opened is not None).only(metrics)
    _check_statistics(rules, reference)
    usable = [one for one in rules.measures if opened is not None or _is_usable(one, reference)]
    if not usable:
        raise ValueError(f"{', '.join(rules.columns)}: {NO_REAL}")
    wanted = rules._replace(measures=tuple(usable)).wanted()
    unknown = set(chosen) - set(wanted)
    if unknown:
        raise ValueError(
            f"weights for {', '.join(sorted(unknown))} are of no use here: this measures with "
            f"{', '.join(wanted) or 'no network'}"
        )
    place = torch.device(device)
    extractors = {
        name: load_extractor(name, str(place), chosen.get(name), offline, precision)
        for name in wanted
    }
    if reference is not None:
        for one in usable:
            if one.kind.startswith("fd") and one.statistics == one.extractor:
                check_extractor(reference, extractors[one.extractor])
    folder = default_folder() if cache is None else Path(cache)
    real_wanted = rules.wanted(real=reference is not None) if opened is not None else {}
    size = None if reference is None else reference.image_size
    how = Pass(extractors, wanted, folder, batch, skip_corrupt, place, size)
    own = {name: extractors[name] for name in real_wanted}
    real_how = how._replace(extractors=own, wanted=real_wanted)
    return Judge(rules, reference, opened, how, real_how, place, groups, memory, precision)


def measure_chunks(
    by: Judge,
    world: World,
    chunks: Chunks,
    total: int,
    labels: Sequence[int] | None = None,
    by_seed: bool = True,
) -> Verdict | None:
    """Measure ``total`` images that come in chunks; None in all processes but the first.

    ``labels``: the classes asked for, one per image, where the chunks do not tell them.
    ``by_seed``: the order is that of seeds; else it may be one of classes, see ``measure``.
    """
    real = None
    if by.real is not None and by.real_how.extractors:
        read = image_chunks(by.real, by.real_how)
        real = collect(by.real_how, read, world, len(by.real.names), "Real images")
    found = collect(by.how, chunks, world, total)
    if found is None:
        return None
    asked = found.facts.get("labels")
    if asked is None and labels is not None:
        asked = torch.tensor(labels)[found.kept]
    result = measure(
        found,
        by.protocol,
        by.reference,
        real=None if real is None else real.features,
        labels=asked,
        groups=by.groups,
        by_seed=by_seed,
        memory=by.memory,
        device=by.device,
    )
    return Verdict(result, found, asked, None if real is None else real.n)


def extract_share(
    by: Judge, world: World, chunks: Chunks, total: int, share: tuple[int, int]
) -> int:
    """Only make features, of every n-th of the chunks for the share (i, n), of real images too.

    How many images this process has seen to; ``measure_chunks`` finds all features together.
    """
    place, places = share[0] * world.size + world.rank, share[1] * world.size
    if by.real is not None and by.real_how.extractors:
        real = image_chunks(by.real, by.real_how)(place, places)
        deque(work(by.real_how, real, world, len(by.real.names) // share[1]), maxlen=0)
    mine = work(by.how, chunks(place, places), world, total // share[1])
    return sum(chunk.size for chunk in mine)


def check_size(by: Judge, source: ImageSource) -> None:
    """ValueError if images differ in size from those that they are compared with."""
    height, width, _ = first_shape(source, by.how.skip_corrupt)
    sizes: dict[str, tuple[int, ...]] = {}
    if by.reference is not None and by.reference.image_size is not None:
        sizes[f"the reference {by.reference.name}"] = (by.reference.image_size,) * 2
    if by.real is not None:
        sizes[str(by.real.path)] = first_shape(by.real, by.how.skip_corrupt)[:2]
    for name, size in sizes.items():
        if size != (height, width):
            raise ValueError(
                f"{source.path} holds images of {width}x{height} pixels but {name} of "
                f"{size[1]}x{size[0]}: their numbers would not compare"
            )


def _rules(reference: Reference | None, protocol: str | None, has_real: bool) -> Protocol:
    if reference is None and (protocol is None or not has_real):
        raise ValueError(
            "--ref is missing: say what to compare with, for example --ref imagenet512 or --ref "
            "digits; or compare with real images alone, --real DIR --protocol NAME"
        )
    name = protocol or (reference.protocol if reference is not None else None)
    if name is None:
        assert reference is not None
        raise ValueError(
            f"the reference {reference.name} does not say for which protocol it was made: "
            "name it by --protocol"
        )
    return find_protocol(name)


def _check_statistics(rules: Protocol, reference: Reference | None) -> None:
    needed = {one.statistics for one in rules.measures if one.kind.startswith("fd")}
    if reference is not None and needed - set(reference.statistics):
        raise ValueError(
            f"the reference {reference.name} holds statistics of "
            f"{', '.join(reference.statistics)}, but protocol {rules.name} needs "
            f"{', '.join(sorted(needed))}: choose another --protocol or --ref, or some --metrics"
        )


def _is_usable(one: Measure, reference: Reference | None) -> bool:
    """Whether a measure can be computed without a folder of real images."""
    if not one.needs_real_features:
        return True
    known = reference.statistics.get(one.statistics) if reference is not None else None
    return known is not None and known.features is not None

"""Seeds -> batches of pictures, as an iterator: nothing here touches a disk."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import fitting, halved
from ..sampler import NonFiniteError, Settings, Trace, solve
from .noise import SeededNoise, one_hot

Labels = str | int | Mapping[int, int]
"""'random' (drawn per seed), 'balanced' (seed mod classes), one class, or {seed: class}."""


class Batch(NamedTuple):
    """Finished pictures."""

    seeds: list[int]  # [n]
    images: Tensor  # uint8 [n, C, H, W] on the CPU
    classes: Tensor | None  # int64 [n] on the CPU; None for an unconditional model
    nfe: float  # evaluations of the main network per picture, counted
    guide_nfe: float  # evaluations of the guide per picture, counted
    size: int  # pictures that the networks saw at a time; another number rounds differently
    trace: dict[str, Any] | None = None  # telemetry, numpy [steps, n] each (see guides.telemetry)


def generate(
    model: Any,
    seeds: Sequence[int],
    settings: Settings,
    *,
    guide_model: Any = None,
    labels: Labels = "random",
    batch: int = 32,
    noise_device: torch.device | str | None = None,
    trace: bool = False,
) -> Iterator[Batch]:
    """Sample the seeds in batches of `batch`; each picture depends on its seed and settings alone.

    Every batch runs at the same shape (the last one is filled up and the filling dropped),
    because networks round differently at different batch sizes. `noise_device` is where random
    numbers are drawn; default: the model's device. `trace` adds telemetry. Raises ValueError for
    a class that the model does not have and NonFiniteError, with the seed, if the network
    produces NaN. Where the memory does not suffice the batch is halved from there on, with a
    notice on stderr; MemoryError if not even one picture fits.
    """
    check_labels(labels, model.label_dim, seeds)
    first = 0
    while first < len(seeds):
        own = list(seeds[first : first + batch])
        padded = own + own[-1:] * (batch - len(own))
        made = fitting(
            _one_batch, model, own, padded, settings, guide_model, labels, noise_device, trace
        )
        if made is None:
            batch = halved(batch, "sampling")
            continue
        first += len(own)
        yield made


def check_labels(labels: Labels, label_dim: int, seeds: Sequence[int]) -> None:
    """ValueError if the labels ask for a class that a model with `label_dim` does not have."""
    if labels == "random":
        return
    if isinstance(labels, str) and labels != "balanced":
        raise ValueError(f"unknown labels '{labels}'; choose random, balanced or a file.")
    if label_dim == 0:
        raise ValueError("this model has no classes; leave out --class and --labels.")
    if isinstance(labels, str):
        return
    if not isinstance(labels, int):
        missing = next((seed for seed in seeds if seed not in labels), None)
        if missing is not None:
            raise ValueError(
                f"the label file has no line for seed {missing}; add it, or name its seeds with "
                "--seeds."
            )
    wanted = [labels] if isinstance(labels, int) else [labels[seed] for seed in seeds]
    wrong = next((c for c in wanted if not 0 <= c < label_dim), None)
    if wrong is not None:
        raise ValueError(f"class {wrong} is out of range; this model has 0 to {label_dim - 1}.")


def start(
    model: Any, seeds: list[int], labels: Labels, noise_device: torch.device | str | None = None
) -> tuple[SeededNoise, Tensor, Tensor | None, Tensor | None]:
    """Where pictures start: (generators, unit noise [B, C, H, W], classes [B], one-hot labels)."""
    source = SeededNoise(seeds, model.device if noise_device is None else noise_device)
    noise = source.randn(model.sample_shape).to(model.device)
    if not model.label_dim:
        return source, noise, None, None
    classes = _classes(labels, seeds, source.randint(model.label_dim).cpu(), model.label_dim)
    return source, noise, classes, one_hot(classes, model)


@torch.inference_mode()
def _one_batch(
    model: Any,
    own: list[int],
    padded: list[int],
    settings: Settings,
    guide_model: Any,
    labels: Labels,
    noise_device: torch.device | str | None,
    trace: bool,
) -> Batch:
    source, noise, classes, vectors = start(model, padded, labels, noise_device)
    drift = settings.drift(model, vectors, guide_model)
    seen = Trace(settings) if trace else None
    try:
        x0 = solve(drift, noise, settings, source.randn_like, seen)
    except NonFiniteError as error:
        seed = padded[error.sample]
        raise NonFiniteError(error.sample, error.step, error.sigma, f"seed {seed}") from error
    images = model.decode(x0)[: len(own)].cpu()
    told = None if seen is None else {
        name: values[:, : len(own)].cpu().numpy() for name, values in seen.result().items()
    }  # fmt: skip
    nfe, guide_nfe = (_mean(count, len(own)) for count in (drift.nfe, drift.guide_nfe))
    classes = None if classes is None else classes[: len(own)]
    return Batch(own, images, classes, nfe, guide_nfe, len(padded), told)


def _mean(count: float | Tensor, n: int) -> float:
    """Evaluations per picture, [B] or one number for all, averaged over the first n."""
    if isinstance(count, Tensor) and count.ndim:
        return count[:n].double().mean().item()
    return float(count)


def _classes(labels: Labels, seeds: list[int], drawn: Tensor, label_dim: int) -> Tensor:
    """Class of each seed, [B]. All policies draw, so that later draws do not depend on them."""
    if labels == "random":
        return drawn
    if labels == "balanced":
        return torch.tensor([seed % label_dim for seed in seeds])
    if isinstance(labels, int):
        return torch.full_like(drawn, labels)
    assert not isinstance(labels, str)
    return torch.tensor([labels[seed] for seed in seeds])

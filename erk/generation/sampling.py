"""Seeds -> batches of pictures, as an iterator: nothing here touches a disk."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.method.drift import NonFiniteError
from erk.method.sampler import Trace, solve
from erk.method.settings import Settings
from erk.models.encoders import DecodeError
from erk.models.noise import SeededNoise, one_hot
from erk.runtime.memory import fitting, halved
from erk.runtime.timing import OFF, Profile

Labels = str | int | Mapping[int, int]
"""'random' (drawn per seed), 'balanced' (seed mod classes), one class, or {seed: class}."""


class Batch(NamedTuple):
    """Finished pictures."""

    seeds: list[int]  # [n]
    pixels: Tensor  # uint8 [n, C, H, W] on the CPU, once they are ``copied``
    classes: Tensor | None  # int64 [n] on the CPU; None for an unconditional model
    nfe: float  # evaluations of the main network per picture, counted
    guide_nfe: float  # evaluations of the guide per picture, counted
    size: int  # pictures that the networks saw at a time; another number rounds differently
    trace: dict[str, Any] | None = None  # telemetry, numpy [steps, n] each (see guides.telemetry)
    copied: Any = None  # an event of CUDA; None: they are there

    @property
    def images(self) -> Tensor:
        """uint8 [n, C, H, W] on the CPU; waits for the GPU, which decodes and copies them.

        Whoever asks late, or from another thread, lets the next batch begin meanwhile.
        """
        if self.copied is not None:
            with torch.cuda.device(self.copied.device):  # the writer's thread begins on GPU 0
                self.copied.synchronize()
        return self.pixels


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
    profile: Profile = OFF,
) -> Iterator[Batch]:
    """Sample the seeds in batches of `batch`; each picture depends on its seed and settings alone.

    Every batch runs at the same shape (the last one is filled up and the filling dropped),
    because networks round differently at different batch sizes. `noise_device` is where random
    numbers are drawn; default: the model's device. `trace` adds telemetry, `profile` keeps times.
    Raises ValueError for a class that the model does not have and NonFiniteError or DecodeError,
    with the seed, if the network or the decoder produces NaN. Where the memory does not suffice
    the batch is halved from there on, with a notice on stderr; MemoryError if not even one picture
    fits.
    """
    check_labels(labels, model.label_dim, seeds)
    first = 0
    while first < len(seeds):
        own = list(seeds[first : first + batch])
        padded = own + own[-1:] * (batch - len(own))
        made = fitting(
            _one_batch, model, own, padded, settings, guide_model, labels, noise_device, trace,
            profile,
        )  # fmt: skip
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


def conditions(
    model: Any,
    seeds: Sequence[int],
    labels: Labels,
    noise_device: torch.device | str | None = None,
) -> tuple[SeededNoise, Tensor, Tensor | None, Tensor | None]:
    """What the seeds draw: their generators, the noise [B, C, H, W], classes [B], one-hot labels.

    The last two are None for a model without classes.
    """
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
    profile: Profile,
) -> Batch:
    seen = Trace(settings) if trace else None
    try:
        with profile.part("network"):
            source, noise, classes, vectors = conditions(model, padded, labels, noise_device)
            drift = settings.drift(model, vectors, guide_model)
            x0 = solve(drift, noise, settings, source.randn_like, seen)
        with profile.part("VAE"):
            images = model.decode(x0)[: len(own)]
    except (NonFiniteError, DecodeError) as error:
        raise error.named(f"seed {padded[error.sample]}") from error
    classes = None if classes is None else classes[: len(own)]
    told = None if seen is None else {
        name: values[:, : len(own)].cpu().numpy() for name, values in seen.result().items()
    }  # fmt: skip
    nfe, guide_nfe = (_mean(count, len(own)) for count in (drift.nfe, drift.guide_nfe))
    with profile.part("copy"):
        pixels, copied = _to_host(images)
    return Batch(own, pixels, classes, nfe, guide_nfe, len(padded), told, copied)


def _to_host(images: Tensor) -> tuple[Tensor, Any]:
    """The images in the host's memory, and the event after which they are there (None: now)."""
    if not images.is_cuda:
        return images.cpu(), None
    pixels = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    pixels.copy_(images, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(images.device))
    return pixels, copied


def _mean(count: float | Tensor, n: int) -> float:
    """Evaluations per picture, [B] or one number for all, averaged over the first n."""
    if isinstance(count, Tensor) and count.ndim:
        return count[:n].double().mean().item()
    return float(count)


def _classes(labels: Labels, seeds: Sequence[int], drawn: Tensor, label_dim: int) -> Tensor:
    """Class of each seed, [B]. All policies draw, so that later draws do not depend on them."""
    if labels == "random":
        return drawn
    if labels == "balanced":
        return torch.tensor([seed % label_dim for seed in seeds])
    if isinstance(labels, int):
        return torch.full_like(drawn, labels)
    assert not isinstance(labels, str)
    return torch.tensor([labels[seed] for seed in seeds])

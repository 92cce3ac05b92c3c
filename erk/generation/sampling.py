"""Seeds to batches of images, as a generator; nothing here touches a disk."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.generation.job import Job, Labels, check_labels
from erk.method.drift import NonFiniteError
from erk.method.sampler import State, Trace, solve
from erk.models.encoders import DecodeError
from erk.models.noise import SeededNoise, one_hot
from erk.runtime.memory import fitting, halved
from erk.runtime.progress import within_batch
from erk.runtime.timing import OFF, Timer


class ImageBatch(NamedTuple):
    """A batch of images; `wait` returns them."""

    seeds: list[int]  # [n]
    pixels: Tensor  # uint8 [n, C, H, W] on the CPU; on CUDA valid only after `wait`
    classes: Tensor | None  # int64 [n] on the CPU; None for an unconditional model
    nfe: float  # evaluations of the denoiser per image, counted
    guide_nfe: float  # evaluations of the guide per image, counted
    size: int  # images that the networks saw at a time; another number rounds differently
    trace: dict[str, Any] | None = None  # telemetry, numpy [steps, n] each
    copied: Any = None  # CUDA event of the copy to the host; None: already there

    def wait(self) -> Tensor:
        """Wait until the GPU has decoded and copied the images, and return them.

        Call it late or from another thread: the next batch is sampled meanwhile.

        Returns
        -------
        Tensor
            uint8 [n, C, H, W] on the CPU.
        """
        if self.copied is not None:
            with torch.cuda.device(self.copied.device):  # a new thread starts on GPU 0
                self.copied.synchronize()
        return self.pixels


class Inputs(NamedTuple):
    """What is drawn for a batch of seeds."""

    source: SeededNoise  # the generators, for later draws
    noise: Tensor  # unit normal [B, C, H, W]
    classes: Tensor | None  # int64 [B]; None for a model without classes
    labels: Tensor | None  # one-hot float32 [B, label_dim]


def generate(
    job: Job,
    seeds: Sequence[int] | None = None,
    *,
    trace: bool = False,
    timer: Timer = OFF,
) -> Iterator[ImageBatch]:
    """Sample images in batches; each image depends on its seed and the settings only.

    Every batch has the same shape (the last one is padded and the padding dropped), because
    networks round differently at different batch sizes. If a batch does not fit into memory, its
    size is halved from there on, with a notice on stderr.

    Parameters
    ----------
    job : Job
        Networks, settings, labels and batch size.
    seeds : sequence of int, optional
        Which seeds to sample; default: those of the job.
    trace : bool
        Also record telemetry per step.
    timer : Timer
        Where to add up times.

    Raises
    ------
    ValueError
        For a class that the model does not have.
    NonFiniteError, DecodeError
        If the network or the decoder produces NaN; names the seed.
    MemoryError
        If not even one image fits into memory.
    """
    seeds = job.seeds if seeds is None else seeds
    check_labels(job.labels, job.model.label_dim, seeds)
    size, first = job.batch, 0
    while first < len(seeds):
        group = [int(seed) for seed in seeds[first : first + size]]
        batch = fitting(_sample_batch, job, group, size, trace, timer)
        if batch is None:
            size = halved(size, "sampling")
            continue
        first += len(group)
        yield batch


def draw_inputs(
    model: Any,
    seeds: Sequence[int],
    labels: Labels,
    noise_device: torch.device | str | None = None,
) -> Inputs:
    """Draw the noise and the classes of a batch of seeds.

    Parameters
    ----------
    model : erk.Model
        Gives shape, classes and device.
    seeds : sequence of int
        One sample per seed.
    labels : Labels
        The class policy.
    noise_device : optional
        Where random numbers are drawn; default: the model's device.
    """
    source = SeededNoise(seeds, model.device if noise_device is None else noise_device)
    noise = source.randn(model.sample_shape).to(model.device)
    if not model.label_dim:
        return Inputs(source, noise, None, None)
    classes = _classes(labels, seeds, source.randint(model.label_dim).cpu(), model.label_dim)
    return Inputs(source, noise, classes, one_hot(classes, model))


@torch.inference_mode()
def _sample_batch(job: Job, seeds: list[int], size: int, trace: bool, timer: Timer) -> ImageBatch:
    n = len(seeds)
    padded = seeds + seeds[-1:] * (size - n)
    telemetry = Trace() if trace else None
    intervals = len(job.settings.sigmas(job.model)) - 1

    def watch(state: State) -> None:
        within_batch(n * min(1.0, (state.index + 1) / intervals))
        if telemetry is not None:
            telemetry(state)

    try:
        with timer.part("network"):
            inputs = draw_inputs(job.model, padded, job.labels, job.noise_device)
            drift = job.settings.drift(job.model, inputs.labels, job.guide)
            x0 = solve(drift, inputs.noise, job.settings, inputs.source.randn_like, watch)
        with timer.part("VAE"):
            images = job.model.decode(x0)[:n]
    except (NonFiniteError, DecodeError) as error:
        raise error.named(f"seed {padded[error.sample]}") from error
    classes = None if inputs.classes is None else inputs.classes[:n]
    rows = None if telemetry is None else {
        name: values[:, :n].cpu().numpy() for name, values in telemetry.result().items()
    }  # fmt: skip
    nfe, guide_nfe = (_mean(count, n) for count in (drift.nfe, drift.guide_nfe))
    with timer.part("copy"):
        pixels, copied = _to_host(images)
    return ImageBatch(seeds, pixels, classes, nfe, guide_nfe, size, rows, copied)


def _to_host(images: Tensor) -> tuple[Tensor, Any]:
    """Start copying images to the host; return them and the CUDA event of the copy, or None."""
    if not images.is_cuda:
        return images.cpu(), None
    pixels = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    pixels.copy_(images, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(images.device))
    return pixels, copied


def _mean(count: float | Tensor, n: int) -> float:
    """Average evaluations per image, [B] or one number for all, over the first n images."""
    if isinstance(count, Tensor) and count.ndim:
        return count[:n].double().mean().item()
    return float(count)


def _classes(labels: Labels, seeds: Sequence[int], drawn: Tensor, label_dim: int) -> Tensor:
    """Choose the class of each seed, [B]. Every policy draws, so later draws are the same."""
    if labels == "random":
        return drawn
    if labels == "balanced":
        return torch.tensor([seed % label_dim for seed in seeds])
    if isinstance(labels, int):
        return torch.full_like(drawn, labels)
    assert not isinstance(labels, str)
    return torch.tensor([labels[seed] for seed in seeds])

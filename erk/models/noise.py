"""Noise and labels from seeds: an image depends on its own seed, never on its batch mates."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erk.runtime.distributed import check_device


class SeededNoise:
    """One random generator per seed, as EDM and EDM2 draw (seed mod 2^32).

    Draws come in a fixed order: the noise, the class, then the noise of every churned step.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str):
        check_device(device)
        self.device = torch.device(device)
        self.generators = [
            torch.Generator(self.device).manual_seed(int(seed) % 2**32) for seed in seeds
        ]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw unit normal numbers [B, *shape], row b from the generator of seed b."""
        rows = [
            torch.randn(list(shape), generator=g, device=self.device, dtype=dtype)
            for g in self.generators
        ]
        return torch.stack(rows)

    def randn_like(self, x: Tensor) -> Tensor:
        """Draw unit normal numbers in the shape, dtype and device of x [B, ...]."""
        return self.randn(x.shape[1:], x.dtype).to(x.device)

    def randint(self, high: int) -> Tensor:
        """Draw integers below `high`, [B] int64."""
        rows = [torch.randint(high, [], generator=g, device=self.device) for g in self.generators]
        return torch.stack(rows)


def whole_numbers(seeds: Sequence[Any]) -> list[int]:
    """Return seeds of any integer type as ints.

    Raises ValueError for other numbers, which would be rounded to the seed of another sample, and
    for what is no list.
    """
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError:
        raise ValueError(
            f"seeds must be a list of whole numbers, such as range(8), not {str(seeds)[:60]}."
        ) from None


def noise_and_labels(
    seeds: Sequence[int], model: Any, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Draw the noise and the class of each seed, as EDM and EDM2 do.

    Parameters
    ----------
    seeds
        At least one seed; each gives one sample, which depends on this seed alone.
    model
        Anything with a `sample_shape` (C, H, W), such as an `erk.Model` or an adapter that was
        given one. `label_dim` defaults to 0 and `device` to the CPU.
    device
        Device on which random numbers are drawn (another device gives other numbers); default: the
        model's.

    Returns
    -------
    tuple
        Unit-variance noise, [B, *sample_shape] float32, and random one-hot labels,
        [B, label_dim] float32 (None without classes), on the model's device.

    Raises
    ------
    ValueError
        If the model has no sample_shape, if there are no seeds or some are not whole numbers, or if
        this machine lacks the device.
    """
    seeds = whole_numbers(seeds)
    if not seeds:
        raise ValueError("there are no seeds: give at least one.")
    shape = getattr(model, "sample_shape", None)
    if shape is None:
        raise ValueError(
            "the model has no sample_shape: give it one, such as "
            "erk.from_denoiser(network, sample_shape=(3, 32, 32))."
        )
    target = getattr(model, "device", "cpu")
    source = SeededNoise(seeds, target if device is None else device)
    noise = source.randn(shape).to(target)
    if not getattr(model, "label_dim", 0):
        return noise, None
    return noise, one_hot(source.randint(model.label_dim), model)


def one_hot(classes: Tensor, model: Any) -> Tensor:
    """Return class numbers [B] as float32 [B, label_dim] on the model's device."""
    vectors = torch.nn.functional.one_hot(classes.long(), model.label_dim)
    return vectors.to(torch.float32).to(getattr(model, "device", "cpu"))

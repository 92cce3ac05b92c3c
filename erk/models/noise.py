"""Noise and labels from seeds: an image depends on its own seed, never on its batch mates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SeededNoise:
    """One random generator per seed, as EDM and EDM2 draw (seed mod 2^32).

    Draws come in a fixed order: the noise, the class, then the noise of every churned step.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str):
        self.device = torch.device(device)
        self.generators = [
            torch.Generator(self.device).manual_seed(int(seed) % 2**32) for seed in seeds
        ]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Unit normal numbers [B, *shape], row b from the generator of seed b."""
        rows = [
            torch.randn(list(shape), generator=g, device=self.device, dtype=dtype)
            for g in self.generators
        ]
        return torch.stack(rows)

    def randn_like(self, x: Tensor) -> Tensor:
        """`randn` in the shape, type and place of x [B, ...]."""
        return self.randn(x.shape[1:], x.dtype).to(x.device)

    def randint(self, high: int) -> Tensor:
        """Integers below `high`, [B] int64."""
        rows = [torch.randint(high, [], generator=g, device=self.device) for g in self.generators]
        return torch.stack(rows)


def noise_and_labels(
    seeds: Sequence[int], model: Any, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """The original per-seed rule: unit noise [B, C, H, W] and random one-hot labels, or None.

    Uses only model.sample_shape, model.label_dim and model.device. Random numbers are drawn on
    `device` (default: the model's, as published; GPU and CPU streams differ) and end up on the
    model's. Labels are [B, label_dim] float32; None if the model has no classes.
    """
    source = SeededNoise(seeds, model.device if device is None else device)
    noise = source.randn(model.sample_shape).to(model.device)
    if model.label_dim == 0:
        return noise, None
    return noise, one_hot(source.randint(model.label_dim), model)


def one_hot(classes: Tensor, model: Any) -> Tensor:
    """Class numbers [B] -> float32 [B, label_dim] on the model's device."""
    vectors = torch.nn.functional.one_hot(classes.long(), model.label_dim)
    return vectors.to(torch.float32).to(model.device)

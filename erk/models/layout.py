"""How a network's numbers lie in memory, and how noise levels get to its device."""

import torch
from torch import Tensor

CHANNELS_LAST = ("cpu", "cuda")
"""Devices whose convolutions are faster, or as fast, with channels last (docs/performance.md)."""


def in_fast_layout(x: Tensor) -> Tensor:
    """x [B, C, H, W] in the faster memory layout; tensors of other shapes as they are."""
    if x.ndim != 4 or x.device.type not in CHANNELS_LAST:
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # so spelt, vmap knows it


def level_for(x: Tensor, sigma: Tensor) -> Tensor:
    """Noise levels, [] or [B], as float32 [1 or B, 1, 1, 1] where x is.

    A single level on the host is filled in on the device: copying it would make the host wait
    until the device has done all that it was given before.
    """
    if sigma.ndim == 0 and sigma.device.type == "cpu" != x.device.type:
        return x.new_full((1, 1, 1, 1), sigma.item(), dtype=torch.float32)
    return sigma.to(x.device, torch.float32).reshape(-1, 1, 1, 1)

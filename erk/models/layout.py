"""Memory layout of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def in_fast_layout(x: Tensor, devices: Sequence[str]) -> Tensor:
    """Convert x [B, C, H, W] to channels last on these devices; return other tensors unchanged."""
    if x.ndim != 4 or x.device.type not in devices:
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap supports this form


def empty_in_layout_of(x: Tensor, channels: int) -> Tensor:
    """Return an unfilled tensor [B, channels, H, W] in the memory layout of x [B, C, H, W]."""
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    shape = (len(x), channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)

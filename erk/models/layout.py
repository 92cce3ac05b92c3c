"""Memory layout of tensors."""

from collections.abc import Sequence

from torch import Tensor


def in_fast_layout(x: Tensor, devices: Sequence[str]) -> Tensor:
    """Convert x [B, C, H, W] to channels last on these devices; return other tensors unchanged."""
    if x.ndim != 4 or x.device.type not in devices:
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap supports this form

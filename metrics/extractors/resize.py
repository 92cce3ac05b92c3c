"""From uint8 images of any size to the square input of a network: the resizes of the protocols.

All take uint8 [B, C, H, W] and keep the range 0..255 (the float bicubic one overshoots it).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def bilinear_tf1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's ``resize_bilinear`` (no aligned corners): float32 [B, C, size, size].

    Output pixel i looks at i * W / size, between two neighbours and without antialiasing, so
    images that shrink are undersampled: FID is defined with it. Rows are interpolated first, in
    TensorFlow's order of operations, so the CPU's result has the same bits as torch-fidelity's.
    """
    low, high, share = _neighbours(images.shape[3], size, images.device)
    left = images.index_select(3, low).float()  # bytes are gathered, four times less than floats
    rows = images.index_select(3, high).float().sub_(left).mul_(share).add_(left)
    low, high, share = _neighbours(images.shape[2], size, images.device)
    top = rows.index_select(2, low)
    return rows.index_select(2, high).sub_(top).mul_(share[:, None]).add_(top)


def bicubic(images: Tensor, size: int) -> Tensor:
    """PyTorch's antialiased bicubic resize, neither rounded nor clipped: float32, as EDM2's."""
    return torch.nn.functional.interpolate(
        images.float(), size=(size, size), mode="bicubic", antialias=True
    )


def bicubic_pil(images: Tensor, size: int) -> Tensor:
    """Pillow's bicubic resize of 8-bit images [B, 3, H, W], as dgm-eval's: uint8."""
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    small = [
        np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
        for picture in pictures
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).to(images.device)


def imagenet_normalise(x: Tensor) -> Tensor:
    """RGB 0..255 [B, 3, H, W] -> float32 with ImageNet's mean 0 and standard deviation 1."""
    mean, std = (
        torch.tensor(values, device=x.device).mul_(255)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (x - mean) / std


def _neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``size`` output pixels: both source pixels, and the second one's share."""
    at = torch.arange(size, dtype=torch.float32, device=device)
    at = at * torch.tensor(length / size, dtype=torch.float32, device=device)
    low = at.long()
    return low, (low + 1).clamp_max(length - 1), at - low

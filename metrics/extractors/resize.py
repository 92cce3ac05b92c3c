"""The resizes of the protocols: uint8 images of any size to the square input of a network.

All take uint8 [B, C, H, W] on any device and keep the range 0..255, except that ``bicubic``
overshoots it.
"""

import functools
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BITS = 22  # of the fraction in Pillow's weights for 8-bit images


def bilinear_tf1(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1's ``resize_bilinear`` (no aligned corners): float32 [B, C, S, S].

    Output pixel i interpolates linearly at i * W / size, without antialiasing: FID is defined
    with this resize, although it undersamples images that shrink. Rows are interpolated first, in
    TensorFlow's order of operations, so the CPU's result has the same bits as torch-fidelity's.
    """
    low, high, weight = _neighbours(images.shape[3], size, images.device)
    left = images.index_select(3, low).float()  # bytes are gathered, four times less than floats
    rows = images.index_select(3, high).float().sub_(left).mul_(weight).add_(left)
    low, high, weight = _neighbours(images.shape[2], size, images.device)
    top = rows.index_select(2, low)
    return rows.index_select(2, high).sub_(top).mul_(weight[:, None]).add_(top)


def bicubic(images: Tensor, size: int) -> Tensor:
    """Resize by PyTorch's antialiased bicubic filter as EDM2: float32, unrounded, unclipped."""
    return torch.nn.functional.interpolate(
        images.float(), size=(size, size), mode="bicubic", antialias=True
    )


def bicubic_pil(images: Tensor, size: int) -> Tensor:
    """Resize 8-bit images [B, 3, H, W] by Pillow's bicubic filter as dgm-eval does: uint8."""
    if images.is_cuda and images.shape[2] == images.shape[3]:
        return bicubic_fixed_point(images, size)
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    small = [
        np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))
        for array in arrays
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).to(images.device)


def bicubic_fixed_point(images: Tensor, size: int) -> Tensor:
    """Compute ``bicubic_pil`` bit for bit as two matrix products: uint8 [B, C, S, S] -> uint8.

    Pillow's weights are integer multiples of 2^-22, and it rounds after each of its two passes,
    along the rows first. (From version 13 on it starts with the columns of tall images; this
    function is for square ones.) The sums stay below 2^53, so float64 holds them exactly in any
    order.
    """
    x = images
    for axis in (3, 2):
        weights = _fixed_point_weights(x.shape[axis], size).to(x.device)
        product = x.double() @ weights.T if axis == 3 else weights @ x.double()
        x = ((product + 2 ** (BITS - 1)) / 2**BITS).floor().clamp(0, 255).to(torch.uint8)
    return x


def imagenet_normalise(x: Tensor) -> Tensor:
    """Normalise RGB 0..255 [B, 3, H, W] by ImageNet's mean and standard deviation: float32."""
    mean, std = (
        torch.tensor(values, device=x.device).mul_(255)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (x - mean) / std


def _neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return both source pixels of each output pixel, and the weight of the second."""
    at = torch.arange(size, dtype=torch.float32, device=device)
    at = at * np.float32(length / size).item()  # as TensorFlow: the factor in float32
    low = at.long()
    return low, (low + 1).clamp_max(length - 1), at - low


@functools.cache
def _fixed_point_weights(length: int, size: int) -> Tensor:
    """Return Pillow's bicubic weights times 2^22: integers in float64 [size, length].

    Catmull and Rom's cubic (a = -1/2), stretched by length / size where the image shrinks. The
    weights of an output pixel are normalised to sum 1, then rounded (halves away from 0).
    """
    scale = length / size
    stretch = max(scale, 1.0)
    reach = 2 * stretch
    table = np.zeros((size, length))
    for i in range(size):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(length, int(centre + reach + 0.5))
        row = [_cubic((j - centre + 0.5) * (1 / stretch)) for j in range(first, last)]
        total = functools.reduce(lambda a, b: a + b, row)  # in this order: rounding is part of it
        for j, weight in enumerate(row, first):
            table[i, j] = math.trunc(weight / total * 2**BITS + math.copysign(0.5, weight))
    return torch.from_numpy(table)


def _cubic(x: float) -> float:
    """Evaluate the cubic convolution kernel of Keys (1981) with a = -1/2."""
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

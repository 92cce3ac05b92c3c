"""A network and its preprocessing made into an Extractor: the part that all networks share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics.extractors import Features


class NetworkExtractor(NamedTuple):
    """A network of colour images as an Extractor; grey images are repeated to three channels."""

    name: str
    feature_dim: int
    sha256: str
    prepare: Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> the network's input
    network: Callable[[Tensor], Features]
    device: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """images uint8 [B, 1 or 3, H, W], on any device; raises ValueError for any other."""
        grey_or_colour = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel() > 0
        if images.dtype != torch.uint8 or not grey_or_colour:
            raise ValueError(
                f"the {self.name} extractor takes uint8 images [B, 1 or 3, H, W], not "
                f"{images.dtype} {list(images.shape)}: give it 8-bit grey or RGB images"
            )
        with full_float32():
            return self.network(self.prepare(images.to(self.device).expand(-1, 3, -1, -1)))


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 in CUDA's matrix products and convolutions in here, whatever the caller allows."""
    switches = _tf32_switches()
    before = [getattr(place, name) for place, name, _ in switches]
    for place, name, off in switches:
        setattr(place, name, off)
    try:
        yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)


def _tf32_switches() -> list[tuple[Any, str, Any]]:
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch >= 2.9, where reading the old switches may raise
        return [(matmul, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]

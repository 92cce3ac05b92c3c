"""A network and its preprocessing made into an Extractor: the part that all networks share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from erk.runtime.precision import ALL, NONE, tf32_only
from metrics.extractors import Outputs

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class NetworkExtractor(NamedTuple):
    """A network of colour images as an Extractor; grey images are repeated to three channels."""

    name: str
    feature_dim: int
    sha256: str
    prepare: Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> the network's input
    network: Callable[[Tensor], Outputs]
    device: str
    precision: str = "fp32"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """images uint8 [B, 1 or 3, H, W], on any device; raises ValueError for any other."""
        grey_or_colour = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel() > 0
        if images.dtype != torch.uint8 or not grey_or_colour:
            raise ValueError(
                f"the {self.name} extractor takes uint8 images [B, 1 or 3, H, W], not "
                f"{images.dtype} {list(images.shape)}: give it 8-bit grey or RGB images"
            )
        with computing(self.precision, self.device):
            pictures = images.to(self.device).expand(-1, 3, -1, -1)
            return as_float32(self.network(self.prepare(pictures)))


@contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """Products and convolutions in fp32, tf32 (on CUDA; elsewhere fp32), fp16 or bf16.

    With the last two the rest, and sums that leave a network's layers, stay in float32 (autocast).
    """
    kind = AUTOCAST.get(precision)
    with (
        tf32_only(ALL if precision == "tf32" else NONE),
        nullcontext() if kind is None else torch.autocast(torch.device(device).type, kind),
    ):
        yield


def as_float32(found: Outputs) -> Outputs:
    """Outputs in float32, whatever the network computed in."""
    rest = (part if part is None else part.float() for part in found[1:])
    return Outputs(found.features.float(), *rest)

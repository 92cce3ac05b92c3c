"""An Extractor from a network and its preprocessing: what all networks share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from erk.runtime.precision import ALL, NONE, tf32_only
from metrics.extractors import Outputs

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {("inception", "cpu"): torch.channels_last, ("vgg16", "cpu"): torch.channels_last}
"""Memory layout of images and kernels by network and device; contiguous where none is given.

A table and not a choice at run time, because layouts round otherwise. On a CPU it follows the
record results/bench/layouts of `python -m scripts.bench.evaluator`, which times both. No GPU has
run that yet; channels last would exclude cuDNN's Winograd algorithm in float32.
"""


def layout_of(name: str, device: torch.device | str) -> torch.memory_format:
    """Return the memory layout of a network's images and kernels on a device."""
    return LAYOUTS.get((name, torch.device(device).type), torch.contiguous_format)


class NetworkExtractor(NamedTuple):
    """An Extractor around a network of RGB images; grey images are repeated to three channels."""

    name: str
    feature_dim: int
    sha256: str
    prepare: Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> the network's input
    network: Callable[[Tensor], Outputs]
    device: str
    precision: str = "fp32"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Extract from uint8 images [B, 1 or 3, H, W] on any device; ValueError for any other."""
        grey_or_colour = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel() > 0
        if images.dtype != torch.uint8 or not grey_or_colour:
            raise ValueError(
                f"the {self.name} extractor takes uint8 images [B, 1 or 3, H, W], not "
                f"{images.dtype} {list(images.shape)}: give it 8-bit grey or RGB images"
            )
        with computing(self.precision, self.device):
            rgb = images.to(self.device).expand(-1, 3, -1, -1)
            return as_float32(self.network(self.prepare(rgb)))


@contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """Compute matrix products and convolutions in fp32, tf32 (CUDA only), fp16 or bf16.

    fp16 and bf16 use autocast: all other operations stay in float32. On CUDA, cuDNN chooses
    kernels that give the same sums every time.
    """
    kind = AUTOCAST.get(precision)
    with (
        _deterministic(),
        tf32_only(ALL if precision == "tf32" else NONE),
        nullcontext() if kind is None else torch.autocast(torch.device(device).type, kind),
    ):
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def as_float32(outputs: Outputs) -> Outputs:
    """Convert outputs to float32."""
    rest = (part if part is None else part.float() for part in outputs[1:])
    return Outputs(outputs.features.float(), *rest)

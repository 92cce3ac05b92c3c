"""Feature extractors by name: each owns its input format, its weights and their hash."""

from importlib import import_module
from typing import NamedTuple, Protocol

from torch import Tensor

_HOME = {  # every module offers load(name, device, weights, offline) -> Extractor
    "inception": "metrics.extractors.inception",
    "dinov2": "metrics.extractors.dinov2",
    "dinov2-pil": "metrics.extractors.dinov2",
    "vgg16": "metrics.extractors.vgg16",
    "digits": "metrics.extractors.digits",
}
NAMES = tuple(_HOME)
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


class Features(NamedTuple):
    """What an extractor says about a batch of images."""

    features: Tensor  # [B, D] float32
    logits: Tensor | None = None  # [B, K] float32; None: the network is no classifier
    spatial: Tensor | None = None  # [B, S] float32; only Inception: the features of ADM's sFID


class Extractor(Protocol):
    """A network with its own preprocessing: images uint8 [B, C, H, W] -> Features."""

    @property
    def name(self) -> str: ...
    @property
    def feature_dim(self) -> int: ...
    @property
    def sha256(self) -> str: ...  # of the file of weights, or "random:SEED"
    @property
    def precision(self) -> str: ...  # of products and convolutions: see ``PRECISIONS``

    def __call__(self, images: Tensor) -> Features: ...


def load_extractor(
    name: str,
    device: str = "cpu",
    weights: str | None = None,
    offline: bool = False,
    precision: str = "fp32",
) -> Extractor:
    """Build the extractor ``name`` on ``device``; its features come back on that device.

    weights: None for the published file, downloaded once into the cache; a state dict (.pth,
    .safetensors) with the same keys; or "random:SEED", for tests only, which the extractor's
    ``sha256`` repeats. offline: never download. precision: what it computes in, of ``PRECISIONS``;
    references are made in fp32.

    Raises ValueError for an unknown name or precision and for weights that are damaged or do not
    fit, OSError (FileNotFoundError, ConnectionError) for weights that cannot be had.
    """
    if name not in _HOME:
        raise ValueError(f"there is no extractor {name!r}: choose one of {', '.join(NAMES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    made = import_module(_HOME[name]).load(name, device, weights, offline)
    extractor: Extractor = made._replace(precision=precision)
    return extractor

"""Feature extractors by name: each owns its input format, its weights and their hash."""

from importlib import import_module
from typing import NamedTuple, Protocol

from torch import Tensor

_HOME = {"digits": "metrics.extractors.digits"}  # every module offers load(device) -> Extractor


class Features(NamedTuple):
    """What an extractor says about a batch of images."""

    features: Tensor  # [B, D] float32
    logits: Tensor | None  # [B, K] float32; None: the network is no classifier


class Extractor(Protocol):
    """A network with its own preprocessing: images uint8 [B, C, H, W] -> Features."""

    @property
    def name(self) -> str: ...
    @property
    def feature_dim(self) -> int: ...
    @property
    def sha256(self) -> str: ...  # of the file of weights

    def __call__(self, images: Tensor) -> Features: ...


def load_extractor(name: str, device: str = "cpu") -> Extractor:
    """Build the extractor ``name`` on ``device``; its features come back on that device.

    Raises ValueError for an unknown name, FileNotFoundError for missing weights.
    """
    if name not in _HOME:
        raise ValueError(f"there is no extractor {name!r}: choose one of {', '.join(_HOME)}")
    extractor: Extractor = import_module(_HOME[name]).load(device)
    return extractor

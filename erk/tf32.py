"""Whether CUDA may round the factors of float32 products and convolutions to TF32's 10 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ALL = ("products", "convolutions")
RELEASED = ("convolutions",)
"""PyTorch's own default: what published code computes by that leaves the switches alone."""


def allow_tf32(of: tuple[str, ...]) -> None:
    """TF32 for these of ``ALL``, and for no others, from here on."""
    for name, (place, switch, off, on) in _switches().items():
        setattr(place, switch, on if name in of else off)


@contextmanager
def full_float32(tf32: tuple[str, ...] = ()) -> Iterator[None]:
    """No TF32 in CUDA's matrix products and convolutions in here, whatever the caller allows.

    But for those of ``ALL`` that ``tf32`` names.
    """
    before = [(place, switch, getattr(place, switch)) for place, switch, *_ in _switches().values()]
    allow_tf32(tf32)
    try:
        yield
    finally:
        for place, switch, value in before:
            setattr(place, switch, value)


def _switches() -> dict[str, tuple[Any, str, Any, Any]]:
    """By what it is of: object, attribute, what switches TF32 off, and on."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch >= 2.9, where reading the old switches may raise
        places = zip(ALL, (matmul, cudnn.conv), strict=True)
        return {name: (place, "fp32_precision", "ieee", "tf32") for name, place in places}
    places = zip(ALL, (matmul, cudnn), strict=True)
    return {name: (place, "allow_tf32", False, True) for name, place in places}

"""Whether CUDA may round the factors of float32 products and convolutions to TF32's 10 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32(tf32: bool = False) -> Iterator[None]:
    """No TF32 in CUDA's matrix products and convolutions in here, whatever the caller allows.

    With ``tf32`` they have it.
    """
    switches = _tf32_switches()
    before = [getattr(place, name) for place, name, *_ in switches]
    for place, name, off, on in switches:
        setattr(place, name, on if tf32 else off)
    try:
        yield
    finally:
        for (place, name, *_), value in zip(switches, before, strict=True):
            setattr(place, name, value)


def _tf32_switches() -> list[tuple[Any, str, Any, Any]]:
    """Object, attribute, what switches TF32 off, and on."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch >= 2.9, where reading the old switches may raise
        return [(place, "fp32_precision", "ieee", "tf32") for place in (matmul, cudnn.conv)]
    return [(place, "allow_tf32", False, True) for place in (matmul, cudnn)]

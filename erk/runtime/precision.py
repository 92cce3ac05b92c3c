"""Whether CUDA may round the factors of float32 products and convolutions to TF32's 10 bits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NONE: tuple[str, ...] = ()
ALL = ("products", "convolutions")
RELEASED = ("convolutions",)
"""PyTorch's own default: what published code computes by that leaves the switches alone."""


def allow_tf32(of: tuple[str, ...]) -> None:
    """TF32 for these of ``ALL``, and for no others, from here on.

    By PyTorch's old switches, with which it sets the new ones: its compiler reads the old ones, and
    versions before 2.11 raise there if the two disagree.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the old ones will go
        torch.backends.cuda.matmul.allow_tf32 = "products" in of
        torch.backends.cudnn.allow_tf32 = "convolutions" in of


@contextmanager
def tf32_only(of: tuple[str, ...]) -> Iterator[None]:
    """In here TF32 for these of ``ALL``, and for no others, whatever the caller allows."""
    switches = _switches()
    before = [getattr(place, name) for place, name, *_ in switches.values()]
    for what, (place, name, off, on) in switches.items():
        setattr(place, name, on if what in of else off)
    try:
        yield
    finally:
        for (place, name, *_), value in zip(switches.values(), before, strict=True):
            setattr(place, name, value)


def _switches() -> dict[str, tuple[Any, str, Any, Any]]:
    """By what it is of: object, attribute, what switches TF32 off, and on."""
    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn
    how: tuple[Any, ...] = ("allow_tf32", False, True)
    if hasattr(matmul, "fp32_precision"):  # torch >= 2.9, where reading the old switches may raise
        conv, how = conv.conv, ("fp32_precision", "ieee", "tf32")
    return {what: (place, *how) for what, place in zip(ALL, (matmul, conv), strict=True)}

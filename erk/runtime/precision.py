"""Switches for TF32, which rounds float32 inputs of CUDA matrix products and convolutions."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NONE: tuple[str, ...] = ()
ALL = ("products", "convolutions")
RELEASED = ("convolutions",)
"""PyTorch's default, which published code uses if it does not set the switches."""


def allow_tf32(operations: tuple[str, ...]) -> None:
    """Allow TF32 in these operations (a subset of `ALL`) and forbid it in the others.

    Sets PyTorch's old switches, which torch.compile reads (before PyTorch 2.11 it raises an error
    if they disagree with the new ones), then the new ones: turned off by the old switch they would
    follow a user's torch.backends.fp32_precision.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old switches are deprecated
        torch.backends.cuda.matmul.allow_tf32 = "products" in operations
        torch.backends.cudnn.allow_tf32 = "convolutions" in operations
    for operation, owner, name, off, on in _switches():
        setattr(owner, name, on if operation in operations else off)


@contextmanager
def tf32_only(operations: tuple[str, ...]) -> Iterator[None]:
    """Allow TF32 in these operations only (a subset of `ALL`), inside the block."""
    switches = _switches()
    before = [getattr(owner, name) for _, owner, name, *_ in switches]
    allow_tf32(operations)
    try:
        yield
    finally:
        values = [*zip(switches, before, strict=True)]
        allow_tf32(tuple(operation for (operation, *_, on), value in values if value == on))
        for (_, owner, name, *_), value in values:
            setattr(owner, name, value)


def _switches() -> list[tuple[str, Any, str, Any, Any]]:
    """List the switches: operation, object, attribute, value for off, value for on."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if not hasattr(matmul, "fp32_precision"):  # torch < 2.9
        old = ("allow_tf32", False, True)
        return [("products", matmul, *old), ("convolutions", cudnn, *old)]
    # The old switches may raise when read.
    new = ("fp32_precision", "ieee", "tf32")
    return [
        ("products", matmul, *new),
        ("convolutions", cudnn.conv, *new),
        ("convolutions", cudnn.rnn, *new),
    ]

"""Measure images against a reference: Fréchet distance, precision, recall, Inception score.

The public names load on first use, so ``import metrics`` costs no torch import.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "open_images": "images",
    "read_batches": "images",
    "load_extractor": "extractors",
    "Moments": "statistics",
    "frechet_distance": "distances",
    "precision_recall": "distances",
    "inception_score": "distances",
    "load_reference": "references",
    "measure": "evaluation",
    "standard_errors": "evaluation",
    "paired_differences": "evaluation",
    "fd_floor": "evaluation",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metrics' has no attribute {name!r}")
    return getattr(import_module(f"metrics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

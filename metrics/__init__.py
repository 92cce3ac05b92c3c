"""Measure images against a reference: Fréchet distance, precision, recall, Inception score.

The public names load on first use, so ``import metrics`` costs no torch import.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "open_images": "images",
    "load_extractor": "extractors",
    "extract": "extraction",
    "Moments": "statistics",
    "frechet_distance": "distances",
    "inception_score": "distances",
    "kernel_distance": "distances",
    "fd_infinity": "distances",
    "precision_recall": "neighbours",
    "density_coverage": "neighbours",
    "load_reference": "references",
    "find_protocol": "protocols",
    "measure": "evaluation",
    "fd_floor": "evaluation",
    "load_judge": "judge",
    "measure_chunks": "judge",
    "differences": "report",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metrics' has no attribute {name!r}")
    return getattr(import_module(f"metrics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

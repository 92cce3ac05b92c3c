"""Measure images against a reference: Fréchet distance, precision, recall, Inception score.

The public names load on first use, so ``import metrics`` costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metrics.distances import fd_infinity as fd_infinity
    from metrics.distances import frechet_distance as frechet_distance
    from metrics.distances import inception_score as inception_score
    from metrics.distances import kernel_distance as kernel_distance
    from metrics.evaluation import fd_floor as fd_floor
    from metrics.evaluation import measure as measure
    from metrics.extraction import extract as extract
    from metrics.extractors import load_extractor as load_extractor
    from metrics.images import open_images as open_images
    from metrics.judge import load_judge as load_judge
    from metrics.judge import measure_chunks as measure_chunks
    from metrics.neighbours import density_coverage as density_coverage
    from metrics.neighbours import precision_recall as precision_recall
    from metrics.protocols import find_protocol as find_protocol
    from metrics.references import load_reference as load_reference
    from metrics.report import differences as differences
    from metrics.statistics import Moments as Moments

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

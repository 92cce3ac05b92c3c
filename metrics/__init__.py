"""Evaluate images against a reference: Fréchet distance, precision, recall, Inception score.

The public names load on first use, so ``import metrics`` costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metrics.api import evaluate as evaluate
    from metrics.distances import fd_infinity as fd_infinity
    from metrics.distances import frechet_distance as frechet_distance
    from metrics.distances import inception_score as inception_score
    from metrics.distances import kernel_distance as kernel_distance
    from metrics.evaluation import Evaluation as Evaluation
    from metrics.evaluation import fd_floor as fd_floor
    from metrics.evaluation import paired_differences as paired_differences
    from metrics.evaluator import Evaluator as Evaluator
    from metrics.evaluator import load_evaluator as load_evaluator
    from metrics.extractors import load_extractor as load_extractor
    from metrics.features import Features as Features
    from metrics.features import extract as extract
    from metrics.images import open_images as open_images
    from metrics.neighbours import density_coverage as density_coverage
    from metrics.neighbours import precision_recall as precision_recall
    from metrics.protocols import find_protocol as find_protocol
    from metrics.references import load_reference as load_reference
    from metrics.statistics import Moments as Moments

_HOME = {
    "evaluate": "api",
    "extract": "features",
    "Features": "features",
    "Evaluation": "evaluation",
    "paired_differences": "evaluation",
    "fd_floor": "evaluation",
    "Evaluator": "evaluator",
    "load_evaluator": "evaluator",
    "Moments": "statistics",
    "frechet_distance": "distances",
    "inception_score": "distances",
    "kernel_distance": "distances",
    "fd_infinity": "distances",
    "precision_recall": "neighbours",
    "density_coverage": "neighbours",
    "load_reference": "references",
    "load_extractor": "extractors",
    "open_images": "images",
    "find_protocol": "protocols",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metrics' has no attribute {name!r}")
    return getattr(import_module(f"metrics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

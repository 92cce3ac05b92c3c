"""A reminder: when values change for the same features, raise `metrics.evaluation.VERSION`.

    python tests/metrics/test_version.py    # stores the values again, after VERSION was raised

Finished rows of tables and studies are valid for one version.
"""

import json
from pathlib import Path

import pytest
import torch

from metrics.evaluation import VERSION, evaluate_features
from metrics.extractors import load_extractor
from metrics.features import Features
from metrics.references import load_reference

GOLDEN = Path(__file__).with_name("evaluation_by_version.json")
N = 60  # images


def evaluate():
    """The digits protocol on images of 8 x 8 grey levels given by a formula."""
    pixel = torch.arange(64).reshape(1, 1, 8, 8)
    number = torch.arange(N).reshape(-1, 1, 1, 1)
    images = ((pixel * (number % 7 + 3) + 11 * number) % 256).to(torch.uint8)
    features = Features({"digits": load_extractor("digits")(images)}, torch.arange(N))
    labels = torch.arange(N) % 10
    result = evaluate_features(
        features, "digits", load_reference("digits"), labels=labels, in_seed_order=True
    )
    errors = {name: error for name, error in result.errors.items() if error is not None}
    return {"values": result.values, "errors": errors}


def test_values_are_those_of_this_version():
    stored = json.loads(GOLDEN.read_text())
    for kind, values in evaluate().items():
        assert values == pytest.approx(stored[kind], rel=1e-4), (
            "values have changed: if this is intended, raise VERSION in metrics/evaluation.py and "
            "store them again"
        )
    assert stored["version"] == VERSION, "store the values again: see the docstring"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"version": VERSION, **evaluate()}, indent=1) + "\n")

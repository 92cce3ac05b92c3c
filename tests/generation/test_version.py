"""A reminder: when images change, raise `erk.generation.job.VERSION`.

    python tests/generation/test_version.py    # stores the images again, after VERSION was raised

Kept features and table rows are valid for one version. Processors round differently, and rounding
moves a decoded value by 1 grey level at most (see test_sampling.py on batch sizes); a change of
the computation moves more.
"""

import json
from pathlib import Path

import numpy as np

from erk import load_model
from erk.generation.job import VERSION, Job
from erk.generation.sampling import generate
from erk.method.settings import Settings

GOLDEN = Path(__file__).with_name("digits_by_version.json")
JOBS = {
    "erk": {"steps": 8, "schedule": "edm", "w_stiff": 0.5, "w_con": 0.3},
    "churn": {"steps": 6, "schedule": "edm", "S_churn": 10},
    "deis": {"solver": "deis", "steps": 6, "schedule": "time_uniform"},
    "unipc": {"solver": "unipc", "steps": 6, "schedule": "logsnr"},
}


def sample():
    """Two digits per job, as lists of 64 grey levels."""
    model, images = load_model("digits"), {}
    for number, (name, settings) in enumerate(JOBS.items()):
        job = Job(model, Settings(**settings), seeds=[2 * number, 2 * number + 1], batch=2)
        (batch,) = generate(job)
        images[name] = batch.wait().flatten(1).tolist()
    return images


def test_images_are_those_of_this_version():
    stored = json.loads(GOLDEN.read_text())
    for name, images in sample().items():
        difference = np.abs(np.asarray(images) - np.asarray(stored["images"][name])).max()
        assert difference <= 1, (
            f"the images of '{name}' have changed by {difference} grey levels: if this is "
            "intended, raise VERSION in erk/generation/job.py and store them again"
        )
    assert stored["version"] == VERSION, "store the images again: see the docstring"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"version": VERSION, "images": sample()}) + "\n")

"""Small runs in a folder, which tests start, stop and let fail."""

import json

import pytest
import torch

from erk.generation.run_folder import RunFolder
from erk.generation.sampling import ImageBatch
from erk.generation.seeds import format_seeds

SETTINGS = {"net": "a.pkl", "steps": 8, "precision": "bf16 on cpu",
            "S_max": float("inf"), "guidance_interval": (0.1, 2.0)}  # fmt: skip
NETWORK = {"name": "a", "sha256": "1" * 64, "licence": "free"}


def metadata(seeds, **others):
    values = {"seeds": format_seeds(seeds), "batch": 4, "network": NETWORK, "guide": None}
    return values | others


def look(path, seeds, kind="png", subdirs=False, network=NETWORK, **settings):
    """Open the folder of a run that samples these seeds and look at it."""
    settings = SETTINGS | {"format": kind, "subdirs": subdirs} | settings
    run = RunFolder(path, settings, list(seeds), metadata(seeds, network=network), batch=4)
    run.look()
    return run


def batch(seeds, size=4, nfe=15, guide_nfe=0):
    """Return a batch of images; all pixels of one are seed mod 256."""
    images = [torch.full((1, 4, 4), seed % 256, dtype=torch.uint8) for seed in seeds]
    return ImageBatch(list(seeds), torch.stack(images), None, nfe, guide_nfe, size)


def sample(path, seeds, **options):
    """Run from start to end; return the seeds that were pending."""
    with look(path, seeds, **options) as run:
        pending = run.pending
        if pending:
            run.write(batch(pending))
    return pending


class Stop(KeyboardInterrupt):
    """A user's Ctrl+C."""


def stopped(path, seeds, *done, **options):
    """Run `seeds`, stopped after the images of `done`."""
    run = look(path, seeds, **options)
    with pytest.raises(Stop), run:
        if done:
            run.write(batch(done))
        raise Stop
    return run


def run_json(path):
    return json.loads((path / "run.json").read_text())


def failed(path, seeds, *done, **options):
    """Run `seeds`; fail after the images of `done`."""
    with pytest.raises(FloatingPointError), look(path, seeds, **options) as run:
        if done:
            run.write(batch(done))
        raise FloatingPointError

"""The job: which networks, settings, seeds and labels images are sampled with."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from erk.method.settings import Settings

VERSION = 1
"""Version of the computation from seeds to images: raise it when the images change.

Features and table rows kept by an earlier version are then computed again. The test
tests/generation/test_version.py compares images with stored ones and fails as a reminder.
"""

STORAGE = ("format", "subdirs")
"""Names in an identity that say how files are stored; they do not change an image."""

Labels = str | int | Mapping[int, int]
"""'random' (drawn per seed), 'balanced' (seed mod classes), one class, or {seed: class}."""


@dataclass(frozen=True)
class Job:
    """What to sample: networks, settings, seeds and labels.

    Parameters
    ----------
    model : erk.Model
        The denoiser, with its decoder.
    settings : Settings
        The sampling settings.
    guide : erk.Model, optional
        The guiding network; needed if `settings.guidance` is not 1.
    seeds : sequence of int
        One image per seed.
    labels : 'random', 'balanced', int or mapping
        The class of each seed.
    batch : int
        Images that the networks see at a time.
    noise_device : str, optional
        Where random numbers are drawn; default: the model's device.
    identity : dict
        Everything but the seed that an image depends on, and how images are stored.
    metadata : dict
        Networks, command, device and versions, as run.json records them.
    """

    model: Any
    settings: Settings = field(default_factory=Settings)
    guide: Any = None
    seeds: Sequence[int] = ()
    labels: Labels = "random"
    batch: int = 32
    noise_device: str | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Hash networks, settings, batch size and versions into 64 hexadecimal digits.

        Two jobs with the same key give the same image for the same seed. Raises ValueError for a
        job without an identity, or with a network that has no sha256.
        """
        networks = [one and getattr(one, "sha256", "") for one in (self.model, self.guide)]
        if not self.identity or "" in networks:
            raise ValueError(
                "results can be kept only for a job with an identity, of networks with a sha256: "
                "give identity=settings.identity() and networks of erk.load_model"
            )
        content = [image_identity(self.identity), networks, self.batch, computation()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def computation() -> list[Any]:
    """Return the versions that image bytes depend on: the sampler's and PyTorch's."""
    return [VERSION, torch.__version__]


def image_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as JSON holds it, without the names of `STORAGE`."""
    return {name: plain(value) for name, value in identity.items() if name not in STORAGE}


def check_labels(labels: Labels, label_dim: int, seeds: Sequence[int]) -> None:
    """Raise ValueError if labels ask for a class that a model with `label_dim` does not have."""
    if labels == "random":
        return
    if isinstance(labels, str) and labels != "balanced":
        raise ValueError(f"unknown labels '{labels}'; choose random, balanced or a file.")
    if label_dim == 0:
        raise ValueError("this model has no classes; leave out --class and --labels.")
    if isinstance(labels, str):
        return
    if not isinstance(labels, int):
        missing = next((seed for seed in seeds if seed not in labels), None)
        if missing is not None:
            raise ValueError(
                f"the label file has no line for seed {missing}; add it, or choose seeds that "
                "have one."
            )
    classes = [labels] if isinstance(labels, int) else [labels[seed] for seed in seeds]
    wrong = next((c for c in classes if not 0 <= c < label_dim), None)
    if wrong is not None:
        raise ValueError(f"class {wrong} is out of range; this model has 0 to {label_dim - 1}.")


def class_of(labels: Labels, seed: int, label_dim: int) -> int | None:
    """Return the class that a policy gives a seed; None without, or drawn with the noise."""
    if not label_dim:
        return None
    if isinstance(labels, str):
        return seed % label_dim if labels == "balanced" else None
    return labels if isinstance(labels, int) else labels.get(seed)


def plain(value: Any) -> Any:
    """Convert a value to what JSON can hold; infinities and types become their names."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)

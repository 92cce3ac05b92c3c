"""Options of an evaluation that are none of its protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from erk.method.arguments import require
from erk.runtime.distributed import check_device
from metrics.evaluation import GROUPS
from metrics.extractors import Extractor, load_extractor
from metrics.extractors.weights import refuse_random
from metrics.statistics import whole_number
from metrics.store import default_folder


@dataclass(frozen=True)
class Options:
    """The options of an evaluation.

    Parameters
    ----------
    weights
        Extractor -> a file of weights, or "random:SEED", which needs ``allow_random``.
    allow_random
        Allow random weights, for trials; the numbers then measure nothing.
    precision
        Precision of the extractors, see `load_extractor`.
    device
        Device of the extractors and the nearest-neighbour search.
    offline
        Never download.
    cache
        Folder of stored features; None: "features" in the cache folder.
    batch
        Images per network call.
    skip_corrupt
        Skip images that cannot be read.
    groups
        Groups of images left out in turn for standard errors; 1: no errors.
    memory
        Bytes for the nearest-neighbour search, in addition to the features.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    allow_random: bool = False
    precision: str = "fp32"
    device: torch.device | str = "cpu"
    offline: bool = False
    cache: str | Path | None = None
    batch: int = 64
    skip_corrupt: bool = False
    groups: int = GROUPS
    memory: int | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.weights, Mapping), "weights", "a dictionary", self.weights)
        require(isinstance(self.cache, str | Path | None), "cache", "a path", self.cache)
        for name, least in {"batch": 1, "groups": 1, "memory": 2**20}.items():
            if name != "memory" or self.memory is not None:
                object.__setattr__(self, name, whole_number(getattr(self, name), name, least))
        check_device(self.device)
        refuse_random(self.weights, self.allow_random)

    @property
    def folder(self) -> Path:
        """Folder of stored features."""
        return default_folder() if self.cache is None else Path(self.cache)

    def load(self, name: str) -> Extractor:
        """Load an extractor with these options."""
        weights = self.weights.get(name)
        return load_extractor(name, str(self.device), weights, self.offline, self.precision)

    def load_for_reference(self, name: str) -> Extractor:
        """Load an extractor for a reference of real images: on the CPU, in fp32."""
        return load_extractor(name, weights=self.weights.get(name), offline=self.offline)

"""Shared by the training scripts: reproducible runs, and weights with their metadata."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from erk.io.atomic import write_file


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Run on one thread with a seed of its scope; restore the caller's threads and random state.

    The order of sums depends on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Write weights to `path`, then metadata with their sha256 beside it; return the metadata."""
    weights = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    metadata = {**metadata, "sha256": hashlib.sha256(weights).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, weights)
    write_file(path.with_suffix(".json"), (json.dumps(metadata, indent=1) + "\n").encode())
    return metadata

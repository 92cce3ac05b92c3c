"""Access to tests/golden: data made by running the original codes (float32, CPU)."""

import functools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def manifest() -> dict[str, Any]:
    """Settings, tolerances (`atol`) and sizes of everything else."""
    return json.loads((GOLDEN / "manifest.json").read_text())


@functools.cache
def models() -> dict[str, Any]:
    """Released presets, files and `architectures` (class, constructor arguments)."""
    return json.loads((GOLDEN / "models.json").read_text())


@functools.cache
def ref(name: str) -> dict[str, np.ndarray]:
    """All arrays of ref/<name>.npz; read only."""
    with np.load(GOLDEN / "ref" / f"{name}.npz") as file:
        arrays = dict(file)
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array)


def pickle_paths(net: str) -> list[Path]:
    """The pickle of a net as torch 2.15 writes it and, if there is one, as torch 1.13 did."""
    paths = [GOLDEN / "nets" / f"{net}{kind}.pkl" for kind in ("", ".old")]
    return [path for path in paths if path.exists()]


def shapes(architecture: str) -> dict[str, list[int]]:
    """Keys and shapes of a released network's state dict."""
    return json.loads((GOLDEN / "shapes" / f"{architecture}.json").read_text())


def ruled_random(salt: str, key: str) -> np.random.RandomState:
    """The generator for one tensor of the networks whose weights are given by a rule."""
    return np.random.RandomState(zlib.crc32(f"{salt}:{key}".encode("ascii")))


def ruled_state(
    keys_and_shapes: Mapping[str, Sequence[int]],
    salt: str,
    family: str,
    resample_filter: Sequence[float] = (1, 1),
) -> dict[str, torch.Tensor]:
    """State dict whose values follow from `salt` and the keys, so that nothing need be stored.

    float16 for `family` 'edm2', float32 for 'edm'; `resample_filter` is that of the EDM net.
    """
    if family == "edm2":
        return {
            key: torch.from_numpy(_ruled_edm2(salt, key, shape).astype(np.float16))
            for key, shape in keys_and_shapes.items()
        }
    return {
        key: torch.from_numpy(_ruled_edm(salt, key, shape, resample_filter).astype(np.float32))
        for key, shape in keys_and_shapes.items()
    }


def _ruled_edm2(salt: str, key: str, shape: Sequence[int]) -> np.ndarray:
    random, name = ruled_random(salt, key), key.rpartition(".")[2]
    if name == "phases":
        return 2 * np.pi * random.random_sample(shape)
    r = np.asarray(random.standard_normal(shape))
    if name == "freqs":
        return 2 * np.pi * r
    if name == "emb_gain":
        return np.asarray(0.4 + 0.1 * np.tanh(r))
    return np.full(shape, 0.9) if name == "out_gain" else r


def _ruled_edm(
    salt: str, key: str, shape: Sequence[int], resample_filter: Sequence[float]
) -> np.ndarray:
    name = key.rpartition(".")[2]
    if name == "resample_filter":
        f = np.asarray(resample_filter, dtype=np.float64)
        return (np.outer(f, f) / f.sum() ** 2)[None, None]
    r = ruled_random(salt, key).standard_normal(shape)
    if name == "freqs":
        return 16 * r
    if len(shape) >= 2:
        return r / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * r if name == "weight" else 0.1 * r


def ruled_input(salt: str, shape: Sequence[int], sigma: float) -> torch.Tensor:
    """The x at which a network by rule was evaluated, float32."""
    n = ruled_random(salt, "x").standard_normal(shape)
    return torch.from_numpy((np.sqrt(sigma**2 + 0.25) * n).astype(np.float32))

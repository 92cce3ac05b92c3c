"""A network's weights: the published file, another state dict, or seeded random numbers."""

import math
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from erk.io.atomic import write_file
from erk.io.download import fetch, hash_record
from erk.io.files import open_regular, unchanged
from erk.io.torch_files import read_state

UNUSED = ("mask_token", "num_batches_tracked")  # stored by some files, needed for training only

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
Randomise = Callable[[Shapes, int], State]  # (shapes, seed) -> weights
RANDOM = "random:"
SENTENCES = (ValueError, pickle.UnpicklingError)  # errors of our readers, which say what is wrong


class Weights(NamedTuple):
    """A state dict with exactly the expected keys and shapes, float32 on the CPU."""

    state: State
    sha256: str  # of the file, or "random:SEED"


def shapes_of(network: nn.Module) -> Shapes:
    """Return the keys and shapes of a network's state dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def random_state(shapes: Shapes, seed: int) -> State:
    """Draw Kaiming-normal kernels (He et al. 2015), scales near 1, other vectors near 0.

    The global random states of torch and NumPy do not change.
    """
    rng = np.random.default_rng(seed)

    def draw(key: str, shape: tuple[int, ...]) -> Tensor:
        r = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        if len(shape) > 1:
            return r.mul_(math.sqrt(2 / math.prod(shape[1:])))
        return r.mul_(0.1).add_(1 if key.endswith((".weight", ".gamma")) else 0)

    return {key: draw(key, shape) for key, shape in shapes.items()}


def is_random(source: str | None) -> TypeGuard[str]:
    return source is not None and source.startswith(RANDOM)


def refuse_random(sources: Mapping[str, str], allowed: bool) -> None:
    """Raise ValueError if a source is "random:SEED" and random weights are not allowed."""
    if not allowed and any(is_random(source) for source in sources.values()):
        raise ValueError(
            "random weights measure nothing: leave them out, or add --allow-random-weights for a "
            "trial whose numbers nobody reports"
        )


def refuse_unused(sources: Mapping[str, str], wanted: Collection[str]) -> None:
    """Raise ValueError if there are weights for a network that is not wanted."""
    unused = sorted(set(sources) - set(wanted))
    if unused:
        raise ValueError(
            f"weights for {', '.join(unused)} are not used here, only those for "
            f"{', '.join(wanted) or 'no network'}"
        )


def check_same_weights(extractor: str, hashes: Mapping[str, str | None]) -> None:
    """Raise ValueError if features that are compared come from different weights.

    ``hashes``: what is compared -> sha256 of the extractor's weights; None or "": it is not known.
    """
    known = [(name, sha256) for name, sha256 in hashes.items() if sha256]
    for name, sha256 in known[1:]:
        first, other = known[0]
        if sha256 != other:
            raise ValueError(
                f"{first} and {name} come from different weights of {extractor} (sha256 "
                f"{other[:8]} and {sha256[:8]}): extract both with the same weights"
            )


def random_weights(source: str, shapes: Shapes, randomise: Randomise = random_state) -> Weights:
    """Draw weights from the seed in "random:SEED"; ValueError if it is not an integer."""
    seed = source.removeprefix(RANDOM)
    if not re.fullmatch("[0-9]{1,18}", seed):
        raise ValueError(f"{source!r} has no seed: give random:SEED with an integer from 0 on")
    return Weights(randomise(shapes, int(seed)), source)


def load_weights(
    source: str | None,
    url: str,
    shapes: Shapes,
    offline: bool = False,
    randomise: Randomise = random_state,
) -> Weights:
    """Load the weights from ``source``: None (the file at ``url``), a path or "random:SEED".

    Raises ValueError for a malformed source and for a file that has an unexpected hash, is not a
    state dict or does not fit ``shapes``; OSError for a file that cannot be read or downloaded.
    """
    if is_random(source):
        return random_weights(source, shapes, randomise)
    path = fetch(url if source is None else source, offline=offline)
    try:
        with unchanged(path) as digest:
            if source is None:
                _check_published(path, digest)
            state = _fitting(_read(path), shapes, path)
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error}): give a file of weights") from None
    if source is None:  # only now: the hash of an invalid file must not be recorded
        _record(hash_record(path), digest)
    return Weights(state, digest)


def _check_published(path: Path, digest: str) -> None:
    """Compare with the 8 digits in the file's name and with the hash recorded at the download."""
    record, named = hash_record(path), re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    known = [named[1]] if named else []
    if record.exists():
        known.append(record.read_text("utf-8", errors="replace").strip())
    expected = next((one for one in known if not one or not digest.startswith(one)), None)
    if expected is not None:
        raise ValueError(
            f"{path} has sha256 {digest}, expected {expected}: delete it and, if it "
            f"exists, {record.name}, then run the command again"
        )


def _record(record: Path, digest: str) -> None:
    """Record the hash for later loads, unless the cache is read-only."""
    if record.exists():
        return
    with suppress(OSError):
        write_file(record, f"{digest}\n".encode())


def _read(path: Path) -> State:
    """Read all tensors of a .safetensors file or of a file written by torch.save."""
    from safetensors.torch import load

    try:
        with open_regular(path) as file:
            state = load(file.read()) if path.suffix == ".safetensors" else read_state(file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a file may hold anything, and each reader has its own errors
        reason = " ".join(str(error).split())[:200] if isinstance(error, SENTENCES) else "damaged"
        raise ValueError(
            f"{path} cannot be read ({reason}): it is truncated or not a state dict; download it "
            "again or give another file"
        ) from error
    pairs = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        raise ValueError(f"{path} is not a state dict: give a file of names and tensors only")
    return dict(state)


def _fitting(state: State, shapes: Shapes, path: Path) -> State:
    """Return the expected tensors in float32; ValueError naming the first wrong key."""
    advice = "give the weights of this network"
    for key, shape in shapes.items():
        if key not in state:
            raise ValueError(f"{path} has no tensor {key}: {advice}")
        if tuple(state[key].shape) != tuple(shape):
            raise ValueError(
                f"{path} holds {key} of shape {list(state[key].shape)}, not {list(shape)}: {advice}"
            )
    for key in state:
        if key not in shapes and key.rpartition(".")[2] not in UNUSED:
            raise ValueError(f"{path} holds {key}, which this network does not have: {advice}")
    return {key: state[key].float() for key in shapes}

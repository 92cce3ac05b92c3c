"""A network's weights: the published file, another state dict, or seeded random numbers."""

import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from erk.io.atomic import write_file
from erk.io.download import fetch, hash_record, sha256_of
from erk.io.untrusted import find_member

UNUSED = ("mask_token", "num_batches_tracked")  # stored by some files, needed for training only

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
Randomise = Callable[[Shapes, int], State]  # (shapes, seed) -> weights
RANDOM = "random:"
LOCAL, END = b"PK\x03\x04", b"PK\x05\x06"  # of a zip: its first member, its end
END64, LOCATOR = b"PK\x06\x06", b"PK\x06\x07"  # the same for large ones, and where it lies
LENGTHS = 56 + 20 + 22  # bytes of these three, without a comment
BLOCK, OVERLAP = 1 << 24, 16  # bytes


class Weights(NamedTuple):
    """A state dict of exactly the keys and shapes asked for, float32 on the CPU."""

    state: State
    sha256: str  # of the file, or "random:SEED"


def shapes_of(network: nn.Module) -> Shapes:
    """Keys and shapes of a network's state dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def random_state(shapes: Shapes, seed: int) -> State:
    """Kaiming-normal kernels and matrices (He et al. 2015), scales near 1, other vectors near 0.

    From a generator of its own: torch's and NumPy's global random states stay as they are.
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
    """ValueError if one of the sources is "random:SEED" and that was not asked for."""
    if not allowed and any(is_random(source) for source in sources.values()):
        raise ValueError(
            "random weights measure nothing: leave them out, or add --allow-random-weights for a "
            "trial whose numbers nobody reports"
        )


def random_weights(source: str, shapes: Shapes, randomise: Randomise = random_state) -> Weights:
    """Weights from the seed in "random:SEED". Raises ValueError where it is no whole number."""
    seed = source.removeprefix(RANDOM)
    if not re.fullmatch("[0-9]{1,18}", seed):
        raise ValueError(f"{source!r} has no seed: give random:SEED with a whole number from 0 on")
    return Weights(randomise(shapes, int(seed)), source)


def load_weights(
    source: str | None,
    url: str,
    shapes: Shapes,
    offline: bool = False,
    randomise: Randomise = random_state,
) -> Weights:
    """The weights that ``source`` names: None (the file at ``url``), a path or "random:SEED".

    Raises ValueError for a malformed source and for a file that has another hash than it should,
    is no state dict or does not fit ``shapes``; OSError for one that cannot be had.
    """
    if is_random(source):
        return random_weights(source, shapes, randomise)
    path = fetch(url if source is None else source, offline=offline)
    try:
        digest = sha256_of(path)
        if source is None:
            _check_published(path, digest)
        state = _fitting(_read(path), shapes, path)
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error}): give a file of weights") from None
    if source is None:  # only now: a file that is none must not become the one to expect
        _record(hash_record(path), digest)
    return Weights(state, digest)


def _check_published(path: Path, digest: str) -> None:
    """Compare with the 8 digits in the file's name and with the hash recorded at its download."""
    record, named = hash_record(path), re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    known = [named[1]] if named else []
    if record.exists():
        known.append(record.read_text("utf-8", errors="replace").strip())
    expected = next((one for one in known if not one or not digest.startswith(one)), None)
    if expected is not None:
        raise ValueError(
            f"{path} has sha256 {digest}, expected {expected}: delete it and, if there, "
            f"{record.name}, then run it again"
        )


def _record(record: Path, digest: str) -> None:
    """Keep the hash for the next time; a cache that can only be read goes without."""
    if record.exists():
        return
    with suppress(OSError):
        write_file(record, f"{digest}\n".encode())


def _read(path: Path) -> State:
    """All tensors of a .safetensors file, or of one that torch.save wrote."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_torch(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file may hold anything, and each reader has its own errors
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): it is cut off or no state dict; "
            "fetch it again or give another file"
        ) from error
    pairs = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        raise ValueError(f"{path} holds no state dict: give a file of names and tensors only")
    return state


def _check_torch(path: Path) -> None:
    """ValueError for a file of torch.save that would make torch reserve more than it holds.

    Torch runs nothing in it, but lets it make bytearrays of any length, copy texts without an end,
    and unpacks its members. These must lie unpacked, so that all pickles can be seen in the bytes.
    """
    with open(path, "rb") as file:
        if file.read(4) == LOCAL:  # by these torch chooses its reader, not by the end as zipfile
            _check_zip(file)
        file.seek(0)
        if _holds(file, (b"bytearray", b"_codecs")):
            raise ValueError("it asks for more than tensors")


def _check_zip(file: IO[bytes]) -> None:
    """ValueError if members are packed, or if torch might read other ones than zipfile."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LENGTHS))
    end = file.read().rjust(LENGTHS, b"\0")  # zip64's end, where that one lies, and the usual end
    has_locator, place = end[56:60] == LOCATOR, int.from_bytes(end[64:72], "little")
    if end[76:80] != END or (has_locator and (place != size - LENGTHS or end[:4] != END64)):
        raise ValueError("it does not end as a zip of torch.save")
    with zipfile.ZipFile(file) as archive:
        members = [find_member(archive, name, 0, 1) for name in archive.namelist()]
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise ValueError("its members are packed")
        if len({one.filename.lower() for one in members}) < len(members):  # to torch they are one
            raise ValueError("a name is there twice")
        # zipfile moves the places of a zip with something before it, torch does not
        if min((one.header_offset for one in members), default=1):
            raise ValueError("it does not begin with its first member")
        if sum(one.file_size for one in members) > size:
            raise ValueError("its members overlap")


def _holds(file: IO[bytes], texts: tuple[bytes, ...]) -> bool:
    """Whether one of some short texts is in the rest of a file, which is read by blocks."""
    seam = b""
    while block := file.read(BLOCK):
        if any(text in part for part in (seam + block[:OVERLAP], block) for text in texts):
            return True
        seam = (seam + block[-OVERLAP:])[-OVERLAP:]
    return False


def _fitting(state: State, shapes: Shapes, path: Path) -> State:
    """The tensors asked for, float32. Raises ValueError naming the first key that is wrong."""
    advice = "give the weights of this network"
    for key, shape in shapes.items():
        if key not in state:
            raise ValueError(f"{path} lacks the tensor {key}: {advice}")
        if tuple(state[key].shape) != tuple(shape):
            raise ValueError(
                f"{path} holds {key} of shape {list(state[key].shape)}, not {list(shape)}: {advice}"
            )
    for key in state:
        if key not in shapes and key.rpartition(".")[2] not in UNUSED:
            raise ValueError(f"{path} holds {key}, which this network does not have: {advice}")
    return {key: state[key].float() for key in shapes}

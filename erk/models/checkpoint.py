"""From a file to a network and back: released pickles, and safetensors with a JSON card."""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from erk.io import pickles
from erk.io.atomic import write_file
from erk.io.download import sha256_of
from erk.io.untrusted import parse_json
from erk.models import edm, edm2
from erk.models.encoders import DigitsEncoder, Encoder, PixelEncoder, VAEEncoder
from erk.models.shapes import SILENT, Part, architecture_of, encoder_of, stripped
from erk.runtime.memory import without_weights

NETWORKS: dict[str, type[nn.Module]] = {
    "Precond": edm2.Precond,
    "EDMPrecond": edm.EDMPrecond,
    "VPPrecond": edm.VPPrecond,
    "VEPrecond": edm.VEPrecond,
    "iDDPMPrecond": edm.iDDPMPrecond,
}
ENCODERS: dict[str, type[Any]] = {
    "StandardRGBEncoder": PixelEncoder,
    "StabilityVAEEncoder": VAEEncoder,
    "DigitsEncoder": DigitsEncoder,
}

LARGEST_HEADER = 100_000_000  # bytes; safetensors allows no more
LARGEST_IMAGE = 4096  # pixels, or values of a latent, in a row
LISTS = ("channel_mult", "attn_resolutions", "resample_filter")  # arguments that hold several
OPTIONAL = ("channel_mult_noise", "channel_mult_emb")  # arguments that may be None
MOST_ITEMS = 1000  # of the arguments of a network, lists within lists included
MOST_WHOLE = 1 << 20  # the largest argument
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Checkpoint(NamedTuple):
    """All that a file says of a network, checked by nobody yet."""

    architecture: Part
    encoder: Part
    tensors: dict[str, Tensor]
    card: dict[str, Any]  # licence, source and the like; plain JSON


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`: .safetensors with its card, else a released pickle.

    Raises OSError or ValueError with one sentence.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a .pkl or .safetensors file in it.")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except PermissionError as error:
        raise PermissionError(f"{error.filename} may not be read; change its rights.") from None


def _read_pickle(path: Path) -> Checkpoint:
    content = pickles.load(path)
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, pickles.Record):
        raise ValueError(f"{path} holds no network under the key 'ema'; give a network pickle.")
    encoder = content.get("encoder")
    try:
        return Checkpoint(
            _part(network),
            Part("StandardRGBEncoder", {}) if encoder is None else _part(encoder),
            dict(network.tensors()),
            {"licence": "CC BY-NC-SA 4.0 (as released by NVIDIA)"},
        )
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} describes its network in an unknown way ({error}).") from error


def _part(record: pickles.Record) -> Part:
    if record.state.get("_init_args"):
        raise ValueError(f"'{record.class_name}' was made with unnamed arguments")
    return Part(record.class_name, _plain(record.init_kwargs, itertools.count()))


def build(checkpoint: Checkpoint, name: str) -> tuple[nn.Module, Encoder]:
    """Our own network with the checkpoint's weights, for inference, and its encoder.

    Raises ValueError if the file names an unknown class, or arguments or tensors do not fit it.
    """
    kind, kwargs = checkpoint.architecture
    if kind not in NETWORKS:
        raise ValueError(f"{name} holds a '{kind}'; networks known here: {', '.join(NETWORKS)}.")
    if checkpoint.encoder.name not in ENCODERS:
        raise ValueError(f"{name} names the unknown encoder '{checkpoint.encoder.name}'.")
    try:
        _check_arguments(kwargs)
        _check_tensors(checkpoint.tensors)
        with without_weights(), _no_larger_than(len(checkpoint.tensors)):
            network = NETWORKS[kind](**kwargs)
        network.load_state_dict(checkpoint.tensors, assign=True)
        _check_network(network)
        encoder: Encoder = ENCODERS[checkpoint.encoder.name](**checkpoint.encoder.kwargs)
    except Exception as error:  # a file may give any constructor any arguments
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(". ")
        raise ValueError(f"{name} does not fit the network '{kind}': {reason}.") from error
    return network.eval().requires_grad_(False), encoder


def _check_arguments(kwargs: dict[str, Any]) -> None:
    """ValueError for arguments of a type or size that no constructor wants: it may not notice."""
    for name, value in kwargs.items():
        if name.endswith("_type"):
            is_right = isinstance(value, str)
        elif name in LISTS:
            is_right = isinstance(value, list | tuple) and all(map(_is_number, value))
        else:
            is_right = _is_number(value) or (value is None and name in OPTIONAL)
        if not is_right:
            raise ValueError(f"the argument {name} is of the wrong kind, or too large")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MOST_WHOLE  # False for NaN


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in WEIGHTS:
            raise ValueError(f"{name} holds no floating point numbers")


@contextmanager
def _no_larger_than(count: int) -> Iterator[None]:
    """ValueError as soon as the networks made within have far more than so many tensors."""
    made = itertools.count()

    def check(*_: Any) -> None:
        if next(made) > 2 * count + 100:
            raise ValueError("it is to have more tensors than the file")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _check_network(network: Any) -> None:
    """ValueError if samples of the network are of an impossible size."""
    channels, size, classes = network.img_channels, network.img_resolution, network.label_dim
    is_right = isinstance(channels, int) and isinstance(size, int) and isinstance(classes, int)
    if not is_right or not (channels > 0 and 0 < size <= LARGEST_IMAGE and classes >= 0):
        raise ValueError("channels, resolution or classes are out of range")


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write the tensors to `path` and the card beside it (.json); the card comes last.

    Each file appears whole or not at all; a weights file without its card is refused by `read`.
    """
    from safetensors.torch import save

    data = save({name: t.contiguous() for name, t in checkpoint.tensors.items()})
    facts = {
        "architecture": _described(checkpoint.architecture),
        "encoder": _described(checkpoint.encoder),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    card = json.dumps(facts | checkpoint.card | facts, indent=1) + "\n"  # in this order
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
        write_file(path.with_suffix(".json"), card.encode())
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}); choose another place.") from error


def _described(part: Part) -> dict[str, Any]:
    return {"class": part.name, "kwargs": part.kwargs}


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    _check_length(path)
    card, place = _card(path)
    if card.get("sha256") is not None and card["sha256"] != sha256_of(path):
        raise ValueError(f"{path} is not the file that its card {place.name} describes (sha256).")
    try:
        tensors = stripped(load_file(path))
    except Exception as error:  # safetensors raises a class of its own for each fault
        raise ValueError(f"{path} is not a sound safetensors file: {error}.") from error
    try:
        architecture = _named(card, "architecture") or architecture_of(tensors, card)
        encoder = _named(card, "encoder") or encoder_of(architecture)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        told = f"; {error}" if isinstance(error, ValueError) else ""
        raise ValueError(
            f"{place} must name 'architecture' and 'encoder' to be a card{told}."
        ) from error
    if "architecture" not in card and os.environ.get("RANK", "0") == "0":
        silent = ", ".join(name for name in SILENT if name not in card)
        print(f"{path.name}: architecture taken from its tensors' shapes, and as released what "
              f"they do not tell: {silent}", file=sys.stderr)  # fmt: skip
    return Checkpoint(architecture, encoder, tensors, card)


def _card(path: Path) -> tuple[dict[str, Any], Path]:
    """The JSON beside a weights file, and its place: NAME.json, else config.json as on the hub."""
    places = [path.with_suffix(".json"), path.with_name("config.json")]
    place = next(filter(Path.is_file, places), None)
    if place is None:
        raise ValueError(
            f"{path} has no card: {places[0].name} must lie beside it and name the architecture "
            "(erk convert writes both)."
        )
    try:
        card = parse_json(place.read_bytes())
        if not isinstance(card, dict):
            raise TypeError
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place} must name 'architecture' and 'encoder' to be a card.") from error
    return card, place


def _named(card: dict[str, Any], key: str) -> Part | None:
    """What a card says of a part; None: nothing. LookupError or TypeError if it is malformed."""
    if key not in card:
        return None
    return Part(str(card[key]["class"]), dict(card[key]["kwargs"]))


def _check_length(path: Path) -> None:
    """Name the missing bytes of a file that was cut off; safetensors' own errors do not."""
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        content = file.read(min(header, LARGEST_HEADER))
    end = 8 + header
    try:
        if len(content) == header:
            entries = {k: v for k, v in parse_json(content).items() if k != "__metadata__"}
            end += max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        elif not content.startswith(b"{") or header > LARGEST_HEADER:
            raise ValueError("no header")
        missing = end - path.stat().st_size
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is not a safetensors file, or only its beginning.") from error
    if missing > 0:
        raise ValueError(
            f"{path} ends too early: at least {missing} bytes are missing; fetch it again."
        )


def _plain(value: Any, items: Iterator[int]) -> Any:
    """Numpy scalars and arrays, which old files hold, as plain Python numbers and lists.

    ``items`` counts: lists of lists of one list have no end. ValueError for more than MOST_ITEMS.
    """
    if next(items) > MOST_ITEMS:
        raise ValueError("its arguments hold too many items")
    if isinstance(value, dict):
        return {str(k): _plain(v, items) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, items) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value

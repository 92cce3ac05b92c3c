"""Read and write networks: released pickles, and safetensors with metadata in a JSON file."""

import hashlib
import itertools
import json
import math
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
from erk.io.atomic import replacing
from erk.io.config import validated
from erk.io.files import open_regular, read_hashed, read_regular
from erk.io.untrusted import parse_json
from erk.models import edm, edm2
from erk.models.arguments import schema_of
from erk.models.encoders import (
    DigitsEncoder,
    Encoder,
    PixelEncoder,
    PixelUnshuffleEncoder,
    VAEEncoder,
)
from erk.models.shapes import DEFAULTED, Part, architecture_of, encoder_of, stripped
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
    "PixelUnshuffleEncoder": PixelUnshuffleEncoder,
}

MAX_HEADER = 100_000_000  # bytes, as in safetensors
MAX_ITEMS = 1000  # of a network's arguments, including nested lists
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Checkpoint(NamedTuple):
    """The content of a network's file, not yet validated."""

    architecture: Part
    encoder: Part
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]  # licence, source and more; plain JSON
    sha256: str = ""  # of the bytes that were read


def read(path: Path) -> Checkpoint:
    """Read a checkpoint: a .safetensors file with its metadata, else a released pickle.

    Raises OSError or ValueError.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a .pkl or .safetensors file in it.")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except PermissionError as error:
        raise PermissionError(
            f"{error.filename} is not readable; change its permissions."
        ) from None


def _read_pickle(path: Path) -> Checkpoint:
    content, sha256, budget = pickles.read(path)
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, pickles.Record):
        raise ValueError(f"{path} has no network under the key 'ema'; give a network pickle.")
    encoder = content.get("encoder")
    try:
        return Checkpoint(
            _part(network),
            Part("StandardRGBEncoder", {}) if encoder is None else _part(encoder),
            dict(network.tensors(budget=budget)),
            {"licence": "CC BY-NC-SA 4.0 (as released by NVIDIA)"},
            sha256,
        )
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} describes its network in an unknown format ({error}).") from error


def _part(record: pickles.Record) -> Part:
    arguments = record.state.get("_init_args", ())
    if not isinstance(arguments, tuple | list) or len(arguments):
        raise ValueError(f"'{record.class_name}' was constructed with positional arguments")
    kwargs = _plain(record.init_kwargs, itertools.count())
    if record.class_name == "EDMPrecond" and kwargs.get("sigma_max") == math.inf:
        del kwargs["sigma_max"]  # the default; JSON has no infinity
    return Part(record.class_name, kwargs)


def build(checkpoint: Checkpoint, name: str) -> tuple[nn.Module, Encoder]:
    """Construct the network of a checkpoint, for inference, and its encoder.

    Parameters
    ----------
    checkpoint
        What `read` returned.
    name
        Name of the file, for error messages.

    Raises
    ------
    ValueError
        If the class is unknown, or its arguments or tensors do not match it.
    """
    kind, kwargs = checkpoint.architecture
    check_parts(checkpoint.architecture, checkpoint.encoder, name)
    try:
        _check_tensors(checkpoint.tensors)
        with without_weights(), limit_parameters(len(checkpoint.tensors)):
            network = NETWORKS[kind](**kwargs)
        _check_numbers(network, checkpoint.tensors)
        network.load_state_dict(_as_computed(checkpoint), assign=True)
        _check_network(network)
        encoder: Encoder = ENCODERS[checkpoint.encoder.name](**checkpoint.encoder.kwargs)
    except MemoryError:
        raise
    except Exception as error:  # torch raises different classes
        kind_of = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind_of}{error}".split())[:300].rstrip(". ")
        raise ValueError(f"{name} does not fit the network '{kind}': {reason}.") from error
    return network.eval().requires_grad_(False), encoder


def _check_numbers(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse several values for a single number: PyTorch 2.8 would take the first."""
    for name, x in network.state_dict().items():
        if x.ndim == 0 and name in tensors and tensors[name].numel() != 1:
            raise ValueError(f"size mismatch for {name}: {list(tensors[name].shape)}, not []")


def check_parts(architecture: Part, encoder: Part, name: str) -> None:
    """Raise ValueError for unknown classes, and for arguments that these do not take.

    `name` is the file's, for the message.
    """
    if architecture.name not in NETWORKS:
        raise ValueError(
            f"{name} holds a '{architecture.name}'; supported networks: {', '.join(NETWORKS)}."
        )
    if encoder.name not in ENCODERS:
        raise ValueError(
            f"{name} names the unknown encoder '{encoder.name}'; "
            f"supported encoders: {', '.join(ENCODERS)}."
        )
    try:
        _check_arguments(architecture)
        _check_arguments(encoder)
    except ValueError as error:
        reason = " ".join(f"{error}".split())[:300].rstrip(". ")
        raise ValueError(
            f"{name} does not fit the network '{architecture.name}': {reason}."
        ) from error


def constructors_of(name: str, kwargs: dict[str, Any]) -> tuple[type[Any], ...]:
    """Return the class of a network or encoder, and the classes that it passes arguments to.

    Raises ValueError for an unknown model_type.
    """
    kind = NETWORKS.get(name) or ENCODERS[name]
    if kind is edm2.Precond:
        return kind, edm2.UNet, edm2.Block
    if not issubclass(kind, edm.Precond):
        return (kind,)
    unet = kwargs.get("model_type") or kind.default_type
    edm.check_choice("model_type", unet, *edm.UNETS)
    return kind, edm.Precond, edm.UNETS[unet]


def _check_arguments(part: Part) -> None:
    """Raise ValueError for arguments of a wrong type or out of range, or that a class lacks."""
    validated(part.kwargs, schema_of(constructors_of(*part)), part.name)


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is not a floating point tensor")
        if tensor.numel() and not all(one.isfinite() for one in tensor.aminmax()):
            raise ValueError(f"{name} holds NaN or infinity")


@contextmanager
def limit_parameters(count: int) -> Iterator[None]:
    """Raise ValueError when a network inside the block has far more than `count` parameters."""
    parameters = itertools.count()

    def check(*_: Any) -> None:
        if next(parameters) > 2 * count + 100:
            raise ValueError("its arguments need more tensors than the file has")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _as_computed(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors in the types that the network computes with.

    EDM's layers compute in the type of their input, so all are float32 but the frequencies, whose
    product with 2 pi has the stored type in the original.
    """
    if NETWORKS[checkpoint.architecture.name] is edm2.Precond:
        return checkpoint.tensors
    return {
        name: tensor if name.endswith(".freqs") else tensor.to(torch.float32)
        for name, tensor in checkpoint.tensors.items()
    }


def _check_network(network: Any) -> None:
    """Raise ValueError if the noise levels of a network are no range."""
    if not 0 <= float(network.sigma_min) < float(network.sigma_max):
        raise ValueError(
            f"sigma_min {float(network.sigma_min):g} is not below sigma_max "
            f"{float(network.sigma_max):g}"
        )


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write the tensors to `path`, then the metadata to the same name with .json.

    Both are on the disk before one is renamed, so an error leaves what was there. Raises OSError.
    """
    from safetensors.torch import save

    shared = {name: t.contiguous() for name, t in checkpoint.tensors.items()}
    first = {t.untyped_storage().data_ptr(): name for name, t in reversed(shared.items())}
    data = save({  # safetensors refuses tensors that share memory: tied weights become copies
        name: t if first[t.untyped_storage().data_ptr()] == name else t.clone()
        for name, t in shared.items()
    })  # fmt: skip
    content = {
        "architecture": _described(checkpoint.architecture),
        "encoder": _described(checkpoint.encoder),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    metadata = json.dumps(content | checkpoint.metadata | content, indent=1)  # in this order
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as tensors, replacing(path.with_suffix(".json")) as text:
            tensors.write(data)
            text.write(f"{metadata}\n".encode())
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}); choose another path.") from error


def _described(part: Part) -> dict[str, Any]:
    return {"class": part.name, "kwargs": part.kwargs}


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors.torch import load

    _check_length(path)
    metadata, source = _metadata(path)
    data, sha256 = read_hashed(path)  # not mapped: the file may change during a run
    if metadata.get("sha256") is not None and metadata["sha256"] != sha256:
        raise ValueError(f"{path} is not the file that {source.name} describes (sha256 differs).")
    try:
        tensors = stripped(load(data))
    except Exception as error:  # safetensors raises different classes
        raise ValueError(f"{path} is not a valid safetensors file: {error}.") from error
    try:
        architecture = _part_of(metadata, "architecture") or architecture_of(tensors, metadata)
        encoder = _part_of(metadata, "encoder") or encoder_of(architecture)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"; {error}" if isinstance(error, ValueError) else ""
        raise ValueError(f"{source} must name 'architecture' and 'encoder'{reason}.") from error
    if "architecture" not in metadata and os.environ.get("RANK", "0") == "0":
        defaults = ", ".join(name for name in DEFAULTED if name not in metadata)
        print(f"{path.name}: architecture inferred from tensor shapes; defaults of the released "
              f"networks for {defaults}", file=sys.stderr)  # fmt: skip
    return Checkpoint(architecture, encoder, tensors, metadata, sha256)


def _metadata(path: Path) -> tuple[dict[str, Any], Path]:
    """Read the JSON beside a weights file: NAME.json, else config.json as on the hub."""
    candidates = [path.with_suffix(".json"), path.with_name("config.json")]
    source = next(filter(Path.is_file, candidates), None)
    if source is None:
        raise ValueError(
            f"{path} has no metadata: {candidates[0].name} must be beside it and name the "
            "architecture (erk convert writes both)."
        )
    try:
        metadata = parse_json(read_regular(source))
        if not isinstance(metadata, dict):
            raise TypeError
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} must name 'architecture' and 'encoder' as JSON.") from error
    return metadata, source


def _part_of(metadata: dict[str, Any], key: str) -> Part | None:
    """Return a part named in the metadata, if any. LookupError or TypeError if it is malformed."""
    if key not in metadata:
        return None
    return Part(str(metadata[key]["class"]), dict(metadata[key]["kwargs"]))


def _check_length(path: Path) -> None:
    """Raise ValueError with the missing bytes of a truncated file, which safetensors omits."""
    with open_regular(path) as file:
        header = int.from_bytes(file.read(8), "little")
        content = file.read(min(header, MAX_HEADER))
    end = 8 + header
    try:
        if len(content) == header:
            entries = {k: v for k, v in parse_json(content).items() if k != "__metadata__"}
            end += max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        elif not content.startswith(b"{") or header > MAX_HEADER:
            raise ValueError("no header")
        missing = end - path.stat().st_size
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is truncated.") from error
    if missing > 0:
        raise ValueError(
            f"{path} is truncated: at least {missing} bytes are missing; download it again."
        )


def _plain(value: Any, items: Iterator[int]) -> Any:
    """Convert NumPy scalars and arrays, which old files hold, to Python numbers and lists.

    `items` counts the values visited, since references can make a list of any length. Raises
    ValueError beyond MAX_ITEMS.
    """
    if next(items) > MAX_ITEMS:
        raise ValueError("its arguments have too many items")
    if isinstance(value, dict):
        return {str(k): _plain(v, items) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, items) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value

"""Read released pickles (networks, reference statistics) without executing anything in them.

A released network is a pickle whose every module is wrapped by a "persistence" call that carries
the SOURCE of its class; the original loader runs that source. Here a restricted unpickler maps a
short list of globals to harmless functions and refuses every other one, so a file can only
produce tensors, arrays, plain containers and `Record`s. Memory and time are bounded by the size of
the file: every step, copy and name is spent from one budget. A container may still be referenced by
a thousand others: limit every traversal of the result.
"""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from erk.io import torch_files
from erk.io.budget import Budget, BudgetError
from erk.io.files import open_regular
from erk.io.pickled_arrays import (
    PickledArray,
    PickledType,
    array_from_buffer,
    encode,
    numpy_names,
)
from erk.io.torch_files import (
    Dictionary,
    StorageUnpickler,
    parameter_of,
    read_legacy,
    tensor_of,
)
from erk.io.unpickler import EndError, Stream, Unpickler, hashed_stream

COPIES, MIN_COPIES = 4, 1 << 20  # bytes that may be copied: for each byte of the file, at least


class Record:
    """A pickled object as the name of its class and its attributes, never an instance.

    For a module, `state` holds `_parameters`, `_buffers`, `_modules` (values may be Records),
    plain attributes, and `_init_args` / `_init_kwargs`, the recorded constructor arguments.
    """

    class_name = "ModuleDict"

    def __init__(self, class_name: str = "ModuleDict", state: dict[str, Any] | None = None):
        if not isinstance(class_name, str):
            raise pickle.UnpicklingError("a class name is not a string")
        self.class_name = class_name
        self.state: dict[str, Any] = {} if state is None else state

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's state is not a dictionary")
        self.state = state

    @property
    def init_kwargs(self) -> dict[str, Any]:
        return dict(self.state.get("_init_kwargs", {}))

    def tensors(
        self, prefix: str = "", budget: Budget | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and values of parameters and persistent buffers, as in a state dict.

        Raises ValueError beyond the budget of the file, which counts modules, the characters of
        names and the bytes of tensors: shared and cyclic references make any number of them.
        """
        budget = budget or Budget(0)
        if budget.modules == 0:
            raise BudgetError("it has too many modules")
        budget.modules -= 1
        transient = self.state.get("_non_persistent_buffers_set", ())
        if not isinstance(transient, set | frozenset | list | tuple | dict):
            raise ValueError("its buffers are not listed by name")
        for kind in ("_parameters", "_buffers"):
            for name, value in self.state.get(kind, {}).items():
                if value is not None and name not in transient:
                    if not isinstance(value, torch.Tensor):
                        raise ValueError(f"{name[:100]} is not a tensor")
                    budget.allocate(len(prefix) + len(name) + value.nbytes)
                    yield prefix + name, value
        for name, child in self.state.get("_modules", {}).items():
            if child is not None:
                budget.allocate(len(prefix) + len(name))
                yield from child.tensors(f"{prefix}{name}.", budget)


class Pickle(NamedTuple):
    """What a pickle holds, the sha256 of its bytes, and what is left of its budget."""

    content: Any
    sha256: str
    budget: Budget


def load(path: str | Path) -> Any:
    """Load a pickle as `read` does; return its content."""
    return read(path).content


def read(path: str | Path) -> Pickle:
    """Read a pickle (protocol 2 or later) with `Record`s for its objects; run none of its code.

    Raises OSError, or ValueError that names the refused global or the missing bytes.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        start = file.peek(1)[:4]  # type: ignore[attr-defined]
        if start == torch_files.ZIP:
            raise ValueError(_other_archive(path))
        if not start.startswith(b"\x80"):
            what = f"begins with {start!r}" if start else "is empty"
            raise ValueError(f"{path} {what}, so it is not a pickle; download it again.")
        stream, budget = hashed_stream(file, size), Budget(size, COPIES, MIN_COPIES)
        try:
            content = _NetworkUnpickler(stream, budget).load()
        except EndError as error:
            raise ValueError(
                f"{path} is truncated: at least {error} bytes are missing after byte "
                f"{stream.size}; download it again."
            ) from None
        except MemoryError:  # the machine's: memory here is bounded by the file's size
            raise
        except Exception as error:  # a malicious stream can make the unpickler raise anything
            reason = _sentence(error)
            raise ValueError(f"{path} cannot be read safely as a pickle: {reason}") from error
        if type(content) is int and content == torch_files.MAGIC:
            raise ValueError(_other_archive(path))
        return Pickle(content, stream.finish(), budget)


def _other_archive(path: str | Path) -> str:
    return (
        f"{path} is a PyTorch archive (torch.save) and not a released network or reference: load "
        "your network in Python and give it to erk.sample by erk.from_epsilon, erk.from_v, "
        "erk.from_flow or erk.from_denoiser"
    )


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:200].rstrip(".")
    is_sentence = isinstance(error, pickle.UnpicklingError | BudgetError)
    return f"{text}." if is_sentence else f"{type(error).__name__} {text}".rstrip() + "."


def _persistent_object(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("a persistent object is not of type 'class'")
    record = Record(meta.get("class_name"))  # type: ignore[arg-type]  # checked there
    record.__setstate__(meta.get("state"))
    return record


class _NetworkUnpickler(Unpickler):
    """Reads a released network or its statistics."""

    buildable = (Record, PickledType, PickledArray)

    def storage(self, data: bytes) -> torch.Tensor:
        """Read a nested storage, a complete torch file, as a flat tensor."""
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a storage in it is not bytes")
        self.budget.allocate(len(data))
        try:
            stream = Stream(io.BytesIO(data), len(data))
            content = read_legacy(stream, self.budget, StorageUnpickler)
            if not isinstance(content, torch.Tensor):
                raise pickle.UnpicklingError("it has an unknown format")
        except EndError:
            raise pickle.UnpicklingError("a storage in it is truncated") from None
        except MemoryError:
            raise
        except Exception as error:
            is_sentence = isinstance(error, pickle.UnpicklingError | BudgetError)
            is_sentence = is_sentence and str(error).startswith("it ")
            reason = str(error)[3:] if is_sentence else "cannot be read"
            raise pickle.UnpicklingError(f"a storage in it {reason}") from error
        return content

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self.storage
        return super().find_class(module, name)


_ALLOWED: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "dnnlib.util.EasyDict": Dictionary,
    "collections.OrderedDict": Dictionary,
    "torch._utils._rebuild_tensor_v2": tensor_of,
    "torch._utils._rebuild_parameter": parameter_of,
    "torch.nn.modules.container.ModuleDict": Record,
    "_codecs.encode": encode,
    **numpy_names(),
}
_NetworkUnpickler.allowed = _ALLOWED
_NetworkUnpickler.copying = (encode, array_from_buffer)

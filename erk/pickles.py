"""Read released pickles (networks, reference statistics) without executing anything in them.

A released network is a pickle whose every module is wrapped by a "persistence" call that carries
the SOURCE of its class; the original loader runs that source. Here a restricted unpickler maps a
short list of names to our own harmless functions and refuses every other name, so a file can
only produce tensors, arrays, plain containers and `Record`s.
"""

import io
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

_DTYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class Record:
    """One pickled object: the name of its class and its attributes; never an instance of it.

    For a module, `state` holds `_parameters`, `_buffers`, `_modules` (values may be Records),
    plain attributes, and `_init_args` / `_init_kwargs`, the constructor's recorded arguments.
    """

    class_name = "ModuleDict"

    def __init__(self, class_name: str = "ModuleDict", state: dict[str, Any] | None = None):
        self.class_name = class_name
        self.state: dict[str, Any] = {} if state is None else state

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's state is not a dictionary")
        self.state = state

    @property
    def init_kwargs(self) -> dict[str, Any]:
        return dict(self.state.get("_init_kwargs", {}))

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values of parameters and persistent buffers, as in a state dict."""
        transient = self.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers"):
            for name, value in self.state.get(kind, {}).items():
                if value is not None and name not in transient:
                    yield prefix + name, value
        for name, child in self.state.get("_modules", {}).items():
            if child is not None:
                yield from child.tensors(f"{prefix}{name}.")


def load(path: str | Path) -> Any:
    """Content of the pickle (protocol 2 or later) at `path`, with `Record`s for its objects.

    Raises OSError, or ValueError with one sentence that names the refused global or the missing
    bytes. No code of the file is run.
    """
    with open(path, "rb") as file:
        start = file.peek(1)[:4]
        if not start.startswith(b"\x80"):
            what = f"begins with {start!r}" if start else "is empty"
            raise ValueError(f"{path} {what}, so it is not a pickle; fetch it again.")
        stream = _Stream(file)
        try:
            return _Unpickler(stream).load()
        except _EndError as error:
            raise ValueError(
                f"{path} ends too early: at least {error} bytes are missing after byte "
                f"{stream.size}; fetch it again."
            ) from None
        except Exception as error:  # a hostile stream can make the unpickler raise anything
            reason = _sentence(error)
            raise ValueError(f"{path} is not a pickle that can be read safely: {reason}") from error


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:200].rstrip(".")
    ours = isinstance(error, pickle.UnpicklingError)
    return f"{text}." if ours else f"{type(error).__name__} {text}".rstrip() + "."


class _EndError(Exception): ...  # carries the number of bytes that are missing


class _Stream:
    """A file that refuses to read, or to reserve memory for, more bytes than it has."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = self.left = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise _EndError(size - self.left)
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise _EndError(1)
        return line


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, less what a hostile stream could use.

    The one in C cannot be told what BUILD may touch (of a tensor it would let the stream set
    shape and strides unchecked, of a class any attribute), and one opcode of four bytes makes it
    reserve gigabytes for its memo. Large values are single opcodes, so this one is fast enough.
    """

    stack: list[Any]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {full!r}, which is not allowed")
        return _ALLOWED[full]

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Record | _DType | _Array):
            raise pickle.UnpicklingError(f"it tries to change a {type(target).__name__}")
        target.__setstate__(state)

    def bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(size)))

    def extension(self) -> None:
        raise pickle.UnpicklingError("it asks for a global by a number")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: build,
        pickle.BYTEARRAY8[0]: bytearray8,
        **dict.fromkeys(pickle.EXT1 + pickle.EXT2 + pickle.EXT4, extension),
    }


def _persistent_object(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("a persistent object is not of type 'class'")
    record = Record(str(meta.get("class_name")))
    record.__setstate__(meta.get("state"))
    return record


def _storage(data: bytes) -> torch.Tensor:
    """A nested storage is a torch file of its own; here it becomes a flat tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        try:
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            flat = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        except Exception as error:  # torch's own text advises to read the file unsafely
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = f"asks for '{found[1]}', which is not allowed" if found else "cannot be read"
            raise pickle.UnpicklingError(f"a storage in it {reason}") from error
    whole = flat.nbytes <= len(data) and data.endswith(flat.view(torch.uint8).numpy().tobytes())
    if not whole:  # torch would hand out memory that was never set
        raise pickle.UnpicklingError("a storage in it does not hold all of its values")
    return flat


def _tensor(
    storage: torch.Tensor, offset: int, size: Any, stride: Any, *unused: Any
) -> torch.Tensor:
    if math.prod(size) > storage.numel():  # strides of 0 could pretend any size
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _parameter(data: torch.Tensor, *unused: Any) -> torch.Tensor:
    return data


class _DType:
    """Stand-in for numpy.dtype while loading; its pickled state only gives the byte order."""

    def __init__(self, code: Any, *unused: Any):
        if code not in _DTYPE_CODES:
            raise pickle.UnpicklingError(f"an array has the type {code!r}, which is not a number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array does not hold plain numbers")
        super().__setstate__((version, shape, dtype.dtype, fortran, raw))


def _empty_array(*unused: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.uint8).view(_Array)


def _array_from_buffer(raw: Any, dtype: _DType, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(raw, bytes | bytearray):  # a view of an array could outlive its memory
        raise pickle.UnpicklingError("an array does not hold plain numbers")
    flat = np.array(np.frombuffer(raw, dtype.dtype))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _numpy_names() -> dict[str, Any]:
    names: dict[str, Any] = {"numpy.ndarray": _empty_array, "numpy.dtype": _DType}
    for core in ("numpy.core", "numpy._core"):  # the spelling of numpy 1 and of numpy 2
        names[f"{core}.multiarray._reconstruct"] = _empty_array
        names[f"{core}.multiarray.scalar"] = _scalar
        names[f"{core}.numeric._frombuffer"] = _array_from_buffer
    return names


_ALLOWED: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "dnnlib.util.EasyDict": dict,
    "collections.OrderedDict": dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.nn.modules.container.ModuleDict": Record,
    "_codecs.encode": _encode,
    **_numpy_names(),
}

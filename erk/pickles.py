"""Read released pickles (networks, reference statistics) without executing anything in them.

A released network is a pickle whose every module is wrapped by a "persistence" call that carries
the SOURCE of its class; the original loader runs that source. Here a restricted unpickler maps a
short list of names to our own harmless functions and refuses every other name, so a file can
only produce tensors, arrays, plain containers and `Record`s.
"""

import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

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
    """Content of the pickle at `path`: containers, tensors, arrays and `Record`s.

    Raises FileNotFoundError, or ValueError with one sentence that names the refused global or
    the missing bytes. No code of the file is run.
    """
    with open(path, "rb") as file:
        stream = _Stream(file)
        try:
            return _Unpickler(stream).load()
        except Exception as error:  # a hostile stream can make the unpickler raise anything
            _explain(Path(path), stream, error)


def _explain(path: Path, stream: "_Stream", error: Exception) -> NoReturn:
    if stream.missing:
        raise ValueError(
            f"{path} ends too early: at least {stream.missing} bytes are missing after byte "
            f"{path.stat().st_size}; fetch it again."
        ) from error
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"{path} is not a pickle that can be read safely: {reason}.") from error


class _Stream:
    """A file that remembers by how many bytes a read fell short."""

    def __init__(self, file: BinaryIO):
        self.file, self.missing = file, 0

    def _wanted(self, wanted: int, data: bytes) -> bytes:
        self.missing = max(self.missing, wanted - len(data))
        return data

    def read(self, size: int) -> bytes:
        return self._wanted(size, self.file.read(size))

    def readline(self) -> bytes:
        line = self.file.readline()
        return self._wanted(len(line) + (not line.endswith(b"\n")), line)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get(f"{module}.{name}")
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which is not allowed")
        return allowed


class _Call:
    """An allowed callable; a stream can call it and nothing else (no attribute can be set)."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


class _EasyDict(dict[str, Any]):
    __slots__ = ()


def _persistent_object(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("a persistent object is not of type 'class'")
    record = Record(str(meta["class_name"]))
    record.__setstate__(meta["state"])
    return record


def _storage(data: bytes) -> torch.Tensor:
    """A nested storage is a torch file of its own; here it becomes a flat tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


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


def _array_from_buffer(
    raw: bytes, dtype: _DType, shape: Any, order: str
) -> np.ndarray[Any, Any]:
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _numpy_names() -> dict[str, Any]:
    names = {"numpy.ndarray": _Call(_empty_array), "numpy.dtype": _Call(_DType)}
    for core in ("numpy.core", "numpy._core"):  # the spelling of numpy 1 and of numpy 2
        names[f"{core}.multiarray._reconstruct"] = _Call(_empty_array)
        names[f"{core}.multiarray.scalar"] = _Call(_scalar)
        names[f"{core}.numeric._frombuffer"] = _Call(_array_from_buffer)
    return names


_ALLOWED: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _Call(_persistent_object),
    "dnnlib.util.EasyDict": _EasyDict,
    "collections.OrderedDict": _Call(dict),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_parameter": _Call(_parameter),
    "torch.storage._load_from_bytes": _Call(_storage),
    "torch.nn.modules.container.ModuleDict": Record,
    "_codecs.encode": _Call(_encode),
    **_numpy_names(),
}

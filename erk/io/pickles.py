"""Read released pickles (networks, reference statistics) without executing anything in them.

A released network is a pickle whose every module is wrapped by a "persistence" call that carries
the SOURCE of its class; the original loader runs that source. Here a restricted unpickler maps a
short list of names to our own harmless functions and refuses every other name, so a file can
only produce tensors, arrays, plain containers and `Record`s. What they take is bounded by the size
of the file: nothing is copied twice, and names alone are keys, for a tuple of tuples of tuples can
take years to hash. But a container may be in a thousand others: walk no pickle without a limit.
"""

import functools
import io
import itertools
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch

from erk.io.pickled_arrays import (
    PickledArray,
    PickledType,
    array_from_buffer,
    count_of,
    encode,
    numpy_names,
)

MOST_PARTS = 250_000  # steps of a file; released networks take up to 20 000
MOST_MODULES = 20_000  # of a network; released ones have some hundred
KEYS = (str, int, float, bytes, type(None))  # what may be a key, or in a set


class Record:
    """One pickled object: the name of its class and its attributes; never an instance of it.

    For a module, `state` holds `_parameters`, `_buffers`, `_modules` (values may be Records),
    plain attributes, and `_init_args` / `_init_kwargs`, the constructor's recorded arguments.
    """

    class_name = "ModuleDict"

    def __init__(self, class_name: str = "ModuleDict", state: dict[str, Any] | None = None):
        if not isinstance(class_name, str):
            raise pickle.UnpicklingError("the name of a class is not a text")
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
        """Names and values of parameters and persistent buffers, as in a state dict.

        Raises ValueError for more than MOST_MODULES, of which a file can pretend any number.
        """
        return _tensors(self, prefix, itertools.count())


def _tensors(
    record: Record, prefix: str, visited: Iterator[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    if next(visited) == MOST_MODULES:
        raise ValueError("too many modules")
    transient = record.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in record.state.get(kind, {}).items():
            if value is not None and name not in transient:
                yield prefix + name, value
    for name, child in record.state.get("_modules", {}).items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", visited)


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
        stream = _Stream(file, os.fstat(file.fileno()).st_size)
        try:
            return _Unpickler(stream).load()
        except _EndError as error:
            raise ValueError(
                f"{path} ends too early: at least {error} bytes are missing after byte "
                f"{stream.size}; fetch it again."
            ) from None
        except MemoryError:  # nothing here takes more than the file is large
            raise
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

    def __init__(self, file: BinaryIO | io.BytesIO, size: int):
        self.file = file
        self.size = self.left = size

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
    pop_mark: Callable[[], list[Any]]
    append: Callable[[Any], None]

    def __init__(self, stream: _Stream):
        super().__init__(stream)
        self.parts, self.uncopied = 0, 4 * stream.size + 2**20

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {full!r}, which is not allowed")
        found = _ALLOWED[full]
        return functools.partial(self.copying, found) if found in _COPYING else found

    def copying(self, function: Callable[..., Any], data: Any, *arguments: Any) -> Any:
        """The function's result; one text copied a million times is refused."""
        self.uncopied -= len(data)
        if self.uncopied < 0:
            raise pickle.UnpicklingError("it copies the same bytes over and over")
        return function(data, *arguments)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Record | PickledType | PickledArray):
            raise pickle.UnpicklingError(f"it tries to change a {type(target).__name__}")
        if isinstance(target, PickledArray):
            self.copying(lambda _: target.__setstate__(state), state[-1])
        else:
            target.__setstate__(state)

    def put(self, items: list[Any], kind: type) -> None:
        """Keys and values in turn into a dictionary, or members into a set, on top of the stack."""
        target: Any = self.stack[-1]
        keys = items[::2] if kind is dict else items
        is_right = isinstance(target, kind) and all(isinstance(key, KEYS) for key in keys)
        if not is_right:
            raise pickle.UnpicklingError(f"it puts something into a {type(target).__name__}")
        target.update(zip(keys, items[1::2], strict=True) if kind is dict else keys)

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value], dict)

    def setitems(self) -> None:
        self.put(self.pop_mark(), dict)

    def additems(self) -> None:
        self.put(self.pop_mark(), set)

    def frozen(self) -> None:
        members = self.pop_mark()
        self.append(set())
        self.put(members, set)

    def whole_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.put(items, dict)

    def extend(self, members: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(members)

    def list_append(self) -> None:
        self.extend([self.stack.pop()])

    def appends(self) -> None:
        self.extend(self.pop_mark())

    def bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(size)))

    def extension(self) -> None:
        raise pickle.UnpicklingError("it asks for a global by a number")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: build,
        pickle.BYTEARRAY8[0]: bytearray8,
        pickle.SETITEM[0]: setitem,
        pickle.SETITEMS[0]: setitems,
        pickle.ADDITEMS[0]: additems,
        pickle.FROZENSET[0]: frozen,
        pickle.DICT[0]: whole_dict,
        pickle.APPEND[0]: list_append,
        pickle.APPENDS[0]: appends,
        **dict.fromkeys(pickle.EXT1 + pickle.EXT2 + pickle.EXT4, extension),
    }


def _counted(step: Callable[[_Unpickler], None]) -> Callable[[_Unpickler], None]:
    """A step, of which a stream may take MOST_PARTS: each can make an object of 200 bytes."""

    def counted(reader: _Unpickler) -> None:
        reader.parts += 1
        if reader.parts > MOST_PARTS:
            raise pickle.UnpicklingError("it has too many parts")
        step(reader)

    return counted


_Unpickler.dispatch = {code: _counted(step) for code, step in _Unpickler.dispatch.items()}


def _persistent_object(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("a persistent object is not of type 'class'")
    record = Record(meta.get("class_name"))  # type: ignore[arg-type]  # it checks
    record.__setstate__(meta.get("state"))
    return record


class _Claim(NamedTuple):  # what a nested storage says of itself
    dtype: torch.dtype
    key: str
    size: int


class _StorageUnpickler(_Unpickler):
    """For the pickles in a nested storage, which only name a type."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STORAGES:
            raise pickle.UnpicklingError(f"it asks for {full!r}, which is not allowed")
        return _STORAGES[full]

    def persistent_load(self, pid: Any) -> _Claim:
        what, dtype, key, _, size, view = pid
        if what != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise pickle.UnpicklingError("it describes no storage")
        return _Claim(dtype, key, size)


def _storage(data: bytes) -> torch.Tensor:
    """A nested storage is a torch file of its own; here it becomes a flat tensor.

    The file holds five pickles (a magic number, a version, sizes of C's types, the storage, its
    key), then the number of values, int64, and the values.
    """
    stream = _Stream(io.BytesIO(data), len(data))
    try:
        magic, version, _, claim, keys = (_StorageUnpickler(stream).load() for _ in range(5))
        if (magic, version, keys) != (_MAGIC, 1001, [claim.key]):
            raise pickle.UnpicklingError("it is of an unknown kind")
        (count,) = struct.unpack("<q", stream.read(8))
        if not 0 <= count == claim.size or stream.left != count * claim.dtype.itemsize:
            raise _EndError
    except _EndError:
        raise pickle.UnpicklingError("a storage in it does not hold all of its values") from None
    except MemoryError:
        raise
    except Exception as error:
        is_ours = isinstance(error, pickle.UnpicklingError) and str(error).startswith("it ")
        reason = str(error)[3:] if is_ours else "cannot be read"
        raise pickle.UnpicklingError(f"a storage in it {reason}") from error
    if count == 0:
        return torch.empty(0, dtype=claim.dtype)
    return torch.frombuffer(bytearray(memoryview(data)[-stream.left :]), dtype=claim.dtype)


def _tensor(
    storage: torch.Tensor, offset: int, size: Any, stride: Any, *unused: Any
) -> torch.Tensor:
    if count_of(size) > storage.numel():  # strides of 0 could pretend any size
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _parameter(data: torch.Tensor, *unused: Any) -> torch.Tensor:
    return data


class _Dict(dict[str, Any]):
    """A dictionary of another class; what is in it does not come by its constructor."""

    def __init__(self, *copied: Any):
        if copied:
            raise pickle.UnpicklingError("it copies a dictionary")
        super().__init__()


_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's files before they became zips
_STORAGES: dict[str, torch.dtype] = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
        "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
        "Char": torch.int8, "Byte": torch.uint8,
    }.items()
}  # fmt: skip
_COPYING: Sequence[Any] = (_storage, encode, array_from_buffer)
_ALLOWED: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "dnnlib.util.EasyDict": _Dict,
    "collections.OrderedDict": _Dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.nn.modules.container.ModuleDict": Record,
    "_codecs.encode": encode,
    **numpy_names(),
}

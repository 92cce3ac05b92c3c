"""Read released pickles (networks, reference statistics) without executing anything in them.

A released network is a pickle whose every module is wrapped by a "persistence" call that carries
the SOURCE of its class; the original loader runs that source. Here a restricted unpickler maps a
short list of globals to harmless functions and refuses every other one, so a file can only
produce tensors, arrays, plain containers and `Record`s. Memory is bounded by the size of the file:
no bytes are copied twice, and keys are scalars, since hashing deeply nested tuples can take years.
A container may still be referenced by a thousand others: limit every traversal of the result.
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

MAX_OPCODES = 250_000  # of a file; released networks have up to 20 000
MAX_MODULES = 20_000  # of a network; released ones have a few hundred
KEYS = (str, int, float, bytes, type(None))  # types of dictionary keys and set members


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

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and values of parameters and persistent buffers, as in a state dict.

        Raises ValueError beyond MAX_MODULES: cyclic references make any number of them.
        """
        return _tensors(self, prefix, itertools.count())


def _tensors(
    record: Record, prefix: str, visited: Iterator[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    if next(visited) == MAX_MODULES:
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
    """Load a pickle (protocol 2 or later) with `Record`s for its objects; run none of its code.

    Raises OSError, or ValueError that names the refused global or the missing bytes.
    """
    with open(path, "rb") as file:
        start = file.peek(1)[:4]
        if not start.startswith(b"\x80"):
            what = f"begins with {start!r}" if start else "is empty"
            raise ValueError(f"{path} {what}, so it is not a pickle; download it again.")
        stream = _Stream(file, os.fstat(file.fileno()).st_size)
        try:
            return _Unpickler(stream).load()
        except _EndError as error:
            raise ValueError(
                f"{path} is truncated: at least {error} bytes are missing after byte "
                f"{stream.size}; download it again."
            ) from None
        except MemoryError:  # the machine's: memory here is bounded by the file's size
            raise
        except Exception as error:  # a malicious stream can make the unpickler raise anything
            reason = _sentence(error)
            raise ValueError(f"{path} cannot be read safely as a pickle: {reason}") from error


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:200].rstrip(".")
    is_sentence = isinstance(error, pickle.UnpicklingError)
    return f"{text}." if is_sentence else f"{type(error).__name__} {text}".rstrip() + "."


class _EndError(Exception): ...  # carries the number of bytes that are missing


class _Stream:
    """A file that refuses to read, or allocate memory for, more bytes than it has."""

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
    """Python's unpickler without the opcodes that a malicious stream could exploit.

    The C implementation cannot restrict BUILD (a stream could set shape and strides of a tensor, or
    any attribute of a class), and a four-byte opcode makes it allocate gigabytes for its memo.
    Large values are single opcodes, so the Python one is fast enough.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    append: Callable[[Any], None]

    def __init__(self, stream: _Stream):
        super().__init__(stream)
        self.opcodes, self.copy_budget = 0, 4 * stream.size + 2**20

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise pickle.UnpicklingError(f"it requests {full!r}, which is not allowed")
        function = _ALLOWED[full]
        return functools.partial(self.copying, function) if function in _COPYING else function

    def copying(self, function: Callable[..., Any], data: Any, *arguments: Any) -> Any:
        """Call a function that copies its data; refuse one buffer copied a million times."""
        self.copy_budget -= len(data)
        if self.copy_budget < 0:
            raise pickle.UnpicklingError("it copies the same bytes too often")
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
        """Add alternating keys and values to a dictionary, or members to a set, on the stack."""
        target: Any = self.stack[-1]
        keys = items[::2] if kind is dict else items
        is_valid = isinstance(target, kind) and all(isinstance(key, KEYS) for key in keys)
        if not is_valid:
            raise pickle.UnpicklingError(f"it adds an item to a {type(target).__name__}")
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

    def build_dict(self) -> None:
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
        raise pickle.UnpicklingError("it requests a global by number")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: build,
        pickle.BYTEARRAY8[0]: bytearray8,
        pickle.SETITEM[0]: setitem,
        pickle.SETITEMS[0]: setitems,
        pickle.ADDITEMS[0]: additems,
        pickle.FROZENSET[0]: frozen,
        pickle.DICT[0]: build_dict,
        pickle.APPEND[0]: list_append,
        pickle.APPENDS[0]: appends,
        **dict.fromkeys(pickle.EXT1 + pickle.EXT2 + pickle.EXT4, extension),
    }


def _counted(step: Callable[[_Unpickler], None]) -> Callable[[_Unpickler], None]:
    """Count an opcode against MAX_OPCODES: each can allocate an object of 200 bytes."""

    def counted(reader: _Unpickler) -> None:
        reader.opcodes += 1
        if reader.opcodes > MAX_OPCODES:
            raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES} opcodes")
        step(reader)

    return counted


_Unpickler.dispatch = {code: _counted(step) for code, step in _Unpickler.dispatch.items()}


def _persistent_object(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("a persistent object is not of type 'class'")
    record = Record(meta.get("class_name"))  # type: ignore[arg-type]  # checked there
    record.__setstate__(meta.get("state"))
    return record


class _Declared(NamedTuple):  # what a nested storage declares
    dtype: torch.dtype
    key: str
    size: int


class _StorageUnpickler(_Unpickler):
    """Reads the pickles in a nested storage, which only name a type."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STORAGES:
            raise pickle.UnpicklingError(f"it requests {full!r}, which is not allowed")
        return _STORAGES[full]

    def persistent_load(self, pid: Any) -> _Declared:
        what, dtype, key, _, size, view = pid
        if what != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise pickle.UnpicklingError("it does not describe a storage")
        return _Declared(dtype, key, size)


def _storage(data: bytes) -> torch.Tensor:
    """Read a nested storage, a complete torch file, as a flat tensor.

    The file holds five pickles (a magic number, a version, sizes of C types, the storage, its key),
    then the number of values, int64, and the values.
    """
    stream = _Stream(io.BytesIO(data), len(data))
    try:
        magic, version, _, declared, keys = (_StorageUnpickler(stream).load() for _ in range(5))
        if (magic, version, keys) != (_MAGIC, 1001, [declared.key]):
            raise pickle.UnpicklingError("it has an unknown format")
        (count,) = struct.unpack("<q", stream.read(8))
        if not 0 <= count == declared.size or stream.left != count * declared.dtype.itemsize:
            raise _EndError
    except _EndError:
        raise pickle.UnpicklingError("a storage in it is truncated") from None
    except MemoryError:
        raise
    except Exception as error:
        is_sentence = isinstance(error, pickle.UnpicklingError) and str(error).startswith("it ")
        reason = str(error)[3:] if is_sentence else "cannot be read"
        raise pickle.UnpicklingError(f"a storage in it {reason}") from error
    if count == 0:
        return torch.empty(0, dtype=declared.dtype)
    return torch.frombuffer(bytearray(memoryview(data)[-stream.left :]), dtype=declared.dtype)


def _tensor(
    storage: torch.Tensor, offset: int, size: Any, stride: Any, *unused: Any
) -> torch.Tensor:
    if count_of(size) > storage.numel():  # strides of 0 could declare any size
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _parameter(data: torch.Tensor, *unused: Any) -> torch.Tensor:
    return data


class _Dict(dict[str, Any]):
    """A dictionary of another class, filled by opcodes and never by its constructor."""

    def __init__(self, *copied: Any):
        if copied:
            raise pickle.UnpicklingError("it copies a dictionary")
        super().__init__()


_MAGIC = 0x1950A86A20F9469CFC6C  # of torch files before the zip format
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

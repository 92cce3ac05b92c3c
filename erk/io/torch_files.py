"""Read files of torch.save: names and tensors only, within the bytes that a file has.

torch's own loader builds tuples as keys, copies text and creates byte arrays of any length, even
with `weights_only`. Here a restricted unpickler reads the pickle, and the values of each storage
are read once.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch

from erk.io.budget import Budget
from erk.io.pickled_arrays import count_of
from erk.io.unpickler import EndError, Stream, Unpickler
from erk.io.untrusted import check_members, read_member

ZIP = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # of files before the zip format
TYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8,
}  # fmt: skip
STORAGES: dict[str, Any] = {
    f"torch.{device}{name}Storage": dtype
    for device in ("", "cuda.") for name, dtype in TYPES.items()
}  # fmt: skip
Read = Callable[[str, torch.dtype, int], torch.Tensor]
"""(key, dtype, number of values) -> a storage as a flat tensor."""


def tensor_of(
    storage: torch.Tensor, offset: int, size: Any, stride: Any, *unused: Any
) -> torch.Tensor:
    """Return a view of a storage; raise UnpicklingError if it does not lie within it."""
    count_of(stride)
    if not isinstance(storage, torch.Tensor) or type(offset) is not int:
        raise pickle.UnpicklingError("a tensor has no storage")
    if count_of(size) > storage.numel():  # strides of 0 could declare any size
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return storage.as_strided(size, stride, offset)


def parameter_of(data: torch.Tensor, *unused: Any) -> torch.Tensor:
    """Return the tensor of a parameter."""
    return data


class Dictionary(dict[str, Any]):
    """A dictionary of another class, filled by opcodes and never by its constructor."""

    def __init__(self, *copied: Any):
        if copied:
            raise pickle.UnpicklingError("it copies a dictionary")
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignore attributes: a state dict has the versions of its modules there."""


class StorageUnpickler(Unpickler):
    """Reads a pickle in which storages are persistent objects; `read_storage` reads each."""

    allowed = STORAGES
    read_storage: Read

    def persistent_load(self, pid: Any) -> torch.Tensor:
        what, dtype, key, _, count, *view = pid
        is_valid = isinstance(what, str) and isinstance(key, str) and type(count) is int
        if not is_valid or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise pickle.UnpicklingError("it does not describe a storage")
        return self.read_storage(key, dtype, count)


class StateUnpickler(StorageUnpickler):
    """Reads the pickle of a state dict."""

    buildable = (Dictionary,)
    allowed = STORAGES | {
        "collections.OrderedDict": Dictionary,
        "torch._utils._rebuild_tensor": tensor_of,
        "torch._utils._rebuild_tensor_v2": tensor_of,
        "torch._utils._rebuild_parameter": parameter_of,
    }


def read_state(file: BinaryIO) -> Any:
    """Read what torch.save wrote, of names, numbers and tensors.

    Raises OSError, or ValueError, EndError and pickle's errors for any other file.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(len(ZIP))
    file.seek(0)
    budget = Budget(size, ratio=2, min_bytes=1 << 20)  # the values and one more copy
    if start == ZIP:
        with zipfile.ZipFile(file) as archive:
            return _read_zip(archive, budget)
    return read_legacy(Stream(file, size), budget, StateUnpickler)


def _read_zip(archive: zipfile.ZipFile, budget: Budget) -> Any:
    check_members(archive)
    names = archive.namelist()
    root = next((n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")), None)
    if root is None:
        raise ValueError("it has no data.pkl")
    if f"{root}byteorder" in names and read_member(archive, f"{root}byteorder") != b"little":
        raise ValueError("its bytes are in big-endian order")
    storages: dict[str, torch.Tensor] = {}

    def read(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        if key not in storages:
            data = read_member(archive, f"{root}data/{key}", 1, budget, limit=0)
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError("a storage has another size than declared")
            storages[key] = torch.empty(count, dtype=dtype)
            storages[key].view(torch.uint8).numpy()[:] = np.frombuffer(data, np.uint8)
        return storages[key]

    content = read_member(archive, f"{root}data.pkl", 1, budget, limit=0)
    reader = StateUnpickler(Stream(io.BytesIO(content), len(content)), budget)
    reader.read_storage = read
    return reader.load()


def read_legacy(stream: Stream, budget: Budget, kind: type[StorageUnpickler]) -> Any:
    """Read a file from before the zip format.

    It holds five pickles (a magic number, a version, sizes of C types, the content, the keys of its
    storages), then the number of values of each storage, int64, and its values.
    """
    magic, version, _ = (_unpickled(kind, stream, budget, _refused) for _ in range(3))
    storages: dict[str, torch.Tensor] = {}
    declared = 0

    def declare(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        nonlocal declared
        if key not in storages:
            declared += count * dtype.itemsize
            if count < 0 or declared > stream.left:  # all values are still to be read
                raise EndError(declared - stream.left)
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    content = _unpickled(kind, stream, budget, declare)
    keys = _unpickled(kind, stream, budget, _refused)
    if (
        (magic, version) != (MAGIC, 1001)
        or not isinstance(keys, list)
        or (not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages))
    ):
        raise pickle.UnpicklingError("it has an unknown format")
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        if count != len(storages[key]):
            raise EndError(8)
        memory = storages[key].view(torch.uint8).numpy()
        memory[:] = np.frombuffer(stream.read(memory.nbytes), np.uint8)
    if stream.left:
        raise EndError(stream.left)
    return content


def _unpickled(kind: type[StorageUnpickler], stream: Stream, budget: Budget, read: Read) -> Any:
    reader = kind(stream, budget)
    reader.read_storage = read
    return reader.load()


def _refused(*_: Any) -> torch.Tensor:
    raise pickle.UnpicklingError("it does not describe a storage")

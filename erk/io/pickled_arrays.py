"""NumPy's part of pickles: harmless stand-ins for what builds arrays and numbers in a stream."""

import math
import pickle
from typing import Any

import numpy as np

_DTYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def count_of(shape: Any) -> int:
    """Values in an array of a shape, of which each part must be short: long ones take years."""
    if len(shape) > 64 or any(n.bit_length() > 63 for n in shape):
        raise pickle.UnpicklingError("a shape in it is of an impossible size")
    return math.prod(shape)


class PickledType:
    """Stand-in for numpy.dtype while loading; its pickled state only gives the byte order."""

    def __init__(self, code: Any, *unused: Any):
        if not isinstance(code, str) or code not in _DTYPE_CODES:
            shown = repr(code) if isinstance(code, str) else "of a type"
            raise pickle.UnpicklingError(f"an array has the type {shown}, which is not a number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray[Any, Any]):
    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, PickledType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array does not hold plain numbers")
        if min(shape, default=0) < 0 or count_of(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError("an array has another size than its bytes")
        super().__setstate__((version, shape, dtype.dtype, fortran, raw))


def _empty_array(*unused: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.uint8).view(PickledArray)


def array_from_buffer(raw: Any, dtype: PickledType, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(raw, bytes | bytearray):  # a view of an array could outlive its memory
        raise pickle.UnpicklingError("an array does not hold plain numbers")
    flat = np.array(np.frombuffer(raw, dtype.dtype))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: PickledType, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        shown = repr(encoding) if isinstance(encoding, str) else "something else"
        raise pickle.UnpicklingError(f"it encodes text as {shown}")
    return text.encode("latin1")


def numpy_names() -> dict[str, Any]:
    names: dict[str, Any] = {"numpy.ndarray": _empty_array, "numpy.dtype": PickledType}
    for core in ("numpy.core", "numpy._core"):  # the spelling of numpy 1 and of numpy 2
        names[f"{core}.multiarray._reconstruct"] = _empty_array
        names[f"{core}.multiarray.scalar"] = _scalar
        names[f"{core}.numeric._frombuffer"] = array_from_buffer
    return names

"""NumPy arrays and scalars in pickles: harmless stand-ins for the globals that build them."""

import math
import pickle
from typing import Any

import numpy as np

_DTYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def count_of(shape: Any) -> int:
    """Return the number of values of a shape; products of huge integers would take years.

    Raises UnpicklingError for anything but at most 64 integers from 0 to 2^63: comparing nested
    tuples would take years too.
    """
    is_valid = isinstance(shape, tuple | list) and len(shape) <= 64
    if not is_valid or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise pickle.UnpicklingError("a shape in it is too large, or not of integers")
    return math.prod(shape)


class PickledType:
    """Stand-in for numpy.dtype while loading; its pickled state only holds the byte order."""

    def __init__(self, code: Any, *unused: Any):
        if not isinstance(code, str) or code not in _DTYPE_CODES:
            shown = repr(code) if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"an array has the type {shown}, which is not numeric")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array has an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray[Any, Any]):
    """Array whose pickled state is checked."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, raw = state
        if type(version) is not int or not isinstance(fortran, bool | int):
            raise pickle.UnpicklingError("an array has an unknown format")
        if not isinstance(dtype, PickledType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array is not numeric")
        if count_of(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError("the shape of an array does not match its bytes")
        super().__setstate__((version, shape, dtype.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def _empty_array(*unused: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.uint8).view(PickledArray)


def array_from_buffer(
    raw: Any, dtype: PickledType, shape: Any, order: str, axis_order: Any = None
) -> np.ndarray[Any, Any]:
    """Copy an array out of bytes, as numpy's `_frombuffer`.

    NumPy 2.3 writes an array of permuted axes as order "K", with the permutation `axis_order`.
    """
    if not isinstance(raw, bytes | bytearray):  # a view of an array could outlive its memory
        raise pickle.UnpicklingError("an array is not numeric")
    count_of(shape)
    flat = np.array(np.frombuffer(raw, dtype.dtype))
    if axis_order is not None:
        count_of(axis_order)
        return flat.reshape(shape).transpose(axis_order)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: PickledType, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def encode(text: str, encoding: str) -> bytes:
    """Encode text as bytes; Latin-1 only, which old pickles use for bytes."""
    if encoding != "latin1":
        shown = repr(encoding) if isinstance(encoding, str) else "an unknown encoding"
        raise pickle.UnpicklingError(f"it encodes text as {shown}")
    return text.encode("latin1")


def numpy_names() -> dict[str, Any]:
    """Map the globals of NumPy 1 and 2 in pickles to their stand-ins."""
    names: dict[str, Any] = {"numpy.ndarray": _empty_array, "numpy.dtype": PickledType}
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2
        names[f"{core}.multiarray._reconstruct"] = _empty_array
        names[f"{core}.multiarray.scalar"] = _scalar
        names[f"{core}.numeric._frombuffer"] = array_from_buffer
    return names

"""NumPy arrays and scalars in pickles: harmless stand-ins for the globals that build them."""

import math
import pickle
from typing import Any

import numpy as np

_DTYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def count_of(shape: Any) -> int:
    """Return the number of values of a shape; products of huge integers would take years."""
    if len(shape) > 64 or any(n.bit_length() > 63 for n in shape):
        raise pickle.UnpicklingError("a shape in it is too large")
    return math.prod(shape)


class PickledType:
    """Stand-in for numpy.dtype while loading; its pickled state only holds the byte order."""

    def __init__(self, code: Any, *unused: Any):
        if not isinstance(code, str) or code not in _DTYPE_CODES:
            shown = repr(code) if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"an array has the type {shown}, which is not numeric")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray[Any, Any]):
    """Array whose pickled state is checked."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, PickledType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array is not numeric")
        if min(shape, default=0) < 0 or count_of(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError("the shape of an array does not match its bytes")
        super().__setstate__((version, shape, dtype.dtype, fortran, raw))


def _empty_array(*unused: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.uint8).view(PickledArray)


def array_from_buffer(raw: Any, dtype: PickledType, shape: Any, order: str) -> np.ndarray[Any, Any]:
    """Copy an array out of bytes, as numpy's `_frombuffer`."""
    if not isinstance(raw, bytes | bytearray):  # a view of an array could outlive its memory
        raise pickle.UnpicklingError("an array is not numeric")
    flat = np.array(np.frombuffer(raw, dtype.dtype))
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

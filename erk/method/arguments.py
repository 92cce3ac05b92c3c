"""Check what callers pass to public functions: one sentence that names the argument."""

import os
from typing import Any

import numpy as np

LONGEST = 80  # characters of a value in a message
PATHS = (str, os.PathLike)


def require(is_right: bool, name: str, expected: str, value: Any) -> None:
    """Raise ValueError, "`name` must be `expected`, not `value`.", unless the value is right."""
    if not is_right:
        raise ValueError(f"{name} must be {expected}, not {shown(value)}.")


def shown(value: Any) -> str:
    """Return the repr of a value on one line, shortened; of an array its dtype and shape."""
    if getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        numpy = "a NumPy array " if isinstance(value, np.ndarray) else ""
        return f"{numpy}{value.dtype} {[*value.shape]}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."

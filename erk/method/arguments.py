"""Check what callers pass to public functions: one sentence that names the argument."""

import difflib
import inspect
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

LONGEST = 80  # characters of a value in a message
PATHS = (str, os.PathLike)


def require(is_right: bool, name: str, expected: str, value: Any, advice: str = "") -> None:
    """Raise ValueError, "`name` must be `expected`, not `value`.", unless the value is right.

    `advice` follows the value.
    """
    if not is_right:
        raise ValueError(f"{name} must be {expected}, not {shown(value)}{advice}.")


def shown(value: Any) -> str:
    """Return the repr of a value on one line, shortened; of an array its dtype and shape."""
    if getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        numpy = "a NumPy array " if isinstance(value, np.ndarray) else ""
        return f"{numpy}{value.dtype} {[*value.shape]}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check_names(names: Iterable[str], known: Collection[str], caller: str) -> None:
    """Raise TypeError for the first name that is not known, with the nearest one."""
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f": it takes {', '.join(known)}."
        raise TypeError(f"{caller}() got an unexpected argument '{unknown}'{hint}")


def takes(function: Any, count: int) -> bool:
    """Return whether this is a function or network that takes `count` positional arguments."""
    if not callable(function):
        return False
    call = type(function).__call__  # that of torch's modules says nothing, their forward does
    is_module = str(getattr(call, "__module__", "")).startswith("torch")
    says = getattr(function, "forward", function) if is_module else function
    try:  # a decorator may change the arguments: its own count, not those of what it wraps
        own = inspect.signature(says, follow_wrapped=False)
    except (TypeError, ValueError):  # it does not say
        return True
    try:
        own.bind(*range(count))
    except TypeError:
        return False
    return True


def call_network(network: Callable[..., Any], *arguments: Any) -> Any:
    """Return network(*arguments); an error of its code gets a note of what it was called with."""
    try:
        return network(*arguments)
    except Exception as error:
        if not hasattr(error, "__notes__"):  # of the network within an adapter
            given = ", ".join(_kind(argument) for argument in arguments)
            error.add_note(f"The network was called with ({given}).")
        raise


def _kind(value: Any) -> str:
    """Return dtype and shape of a tensor, the repr of anything else."""
    known = hasattr(value, "dtype") and hasattr(value, "shape")
    return f"{value.dtype} {[*value.shape]}" if known else shown(value)

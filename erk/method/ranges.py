"""Numbers within their limits, as plain Python's. Imports no torch.

Numbers of NumPy and torch become numbers, arrays, tensors and lists become tuples.
"""

import math
from numbers import Real
from typing import Any

from erk.method.arguments import shown
from erk.method.fields import Field


def plain(value: Any) -> Any:
    """Return numbers of NumPy and torch as Python's, arrays and lists as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return tuple(map(plain, value))
    if isinstance(value, Real) and not isinstance(value, int | float):
        return float(value)
    return value


def in_range(one: Field, value: Any) -> int | float:
    """Return the number of a setting as int or float; ValueError if it is not as declared."""
    value = plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        converted = _as_kind(one.kind, value)
        if converted is not None and _is_within(one, converted):
            return converted
    raise ValueError(f"{one.name} must be {_expected(one)}, not {shown(value)}.")


def _as_kind(kind: type, value: int | float) -> int | float | None:
    """Return the number as int or float; None where it is neither."""
    if kind is int:
        return int(value) if isinstance(value, int) or value.is_integer() else None
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return None


def _is_within(one: Field, value: int | float) -> bool:
    is_number = isinstance(value, int) or not math.isnan(value)  # isnan overflows on large integers
    return is_number and (
        (one.least is None or value >= one.least)
        and (one.above is None or value > one.above)
        and (one.most is None or value <= one.most)
        and (not one.finite or abs(value) != math.inf)
    )


def _expected(one: Field) -> str:
    """Describe the numbers that a setting takes, such as 'a finite number of at least 0'."""
    text = "an integer" if one.kind is int else "a finite number" if one.finite else "a number"
    if one.above is not None:
        return f"{text} above {one.above:g}"
    if one.most is not None:
        least, most = (f"{x:g}" if isinstance(x, float) else x for x in (one.least, one.most))
        return f"{text} from {least} to {most}"
    return text if one.least is None else f"{text} of at least {one.least:g}"

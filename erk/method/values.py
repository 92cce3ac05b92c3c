"""Check the value of a setting against its declaration, and convert it to plain Python.

Two settings are equal, and have one identity, exactly where they give the same samples.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from erk.method.arguments import require, shown, takes
from erk.method.corrections import Correction
from erk.method.fields import Field
from erk.method.ranges import in_range, plain

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def checked(one: Field, value: Any) -> Any:
    """Return the value of a setting as plain Python.

    Raises ValueError, one sentence, for a value of another type or out of range.
    """
    if value is None and one.default is None:
        return None
    return FORMS[one.form](one, value)


def number(name: str, value: Any, kind: type = float, **limits: Any) -> Any:
    """Return a number as int or float; ValueError for another type or out of its limits.

    `limits` are those of a `Field`: least, above, most, finite.
    """
    return in_range(Field(name, 0, "", "", kind, **limits), value)


def _value(one: Field, value: Any) -> Any:
    if one.kind in (int, float):
        return in_range(one, value)
    value = plain(value)
    is_bool, is_choice = isinstance(value, bool), one.kind is bool or value in one.choices
    require(is_bool or one.kind is not bool, one.name, "True or False", value)
    require(is_choice, one.name, " or ".join(one.choices), value)
    return value


def _solver(one: Field, value: Any) -> Any:
    known = isinstance(value, str) or takes(value, 5)
    signature = "(drift, x, sigma, sigma_next, memory=None) -> erk.Step"
    require(known, "solver", f"{', '.join(one.choices)} or a function {signature}", value)
    return plain(value)


def _schedule(one: Field, value: Any) -> Any:
    """Return the name of a schedule as it is, noise levels as a tuple of numbers."""
    if isinstance(value, str):
        return plain(value)
    levels = plain(value)
    require(isinstance(levels, tuple), "schedule", "a name or a list of noise levels", value)
    entry = one._replace(kind=float, name="a noise level of schedule", finite=True)
    return tuple(in_range(entry, level) for level in levels)


def _interval(one: Field, value: Any) -> tuple[float, float]:
    bounds = plain(value)
    entry = one._replace(kind=float, name="a bound of guidance_interval", finite=False)
    if isinstance(bounds, tuple) and len(bounds) == 2:
        lo, hi = (in_range(entry, bound) for bound in bounds)
        if 0 <= lo < hi:
            return lo, hi
    raise ValueError(
        f"guidance_interval must be (lo, hi) in sigma with 0 <= lo < hi, not {shown(bounds)}."
    )


def _options(one: Field, value: Any) -> dict[str, Any]:
    known = isinstance(value, Mapping)
    require(known, "solver_options", "a dictionary such as {'order': 3}", value)
    return {key: plain(item) for key, item in value.items()}


def _twin(one: Field, value: Any) -> Any:
    expected = "a function (step, previous step or None) -> (twin, h)"
    require(takes(value, 2), one.name, expected, value)
    return value


def _correction(one: Field, value: Any) -> Any:
    if value == "auto" if isinstance(value, str) else isinstance(value, Correction):
        return value
    hint = "; a card is given by `card`" if value is not False else ""
    raise ValueError(f"erk must be 'auto', a Correction or None, not {shown(value)}{hint}.")


def _dtype(one: Field, value: Any) -> torch.dtype:
    known = isinstance(value, torch.dtype) and value in DTYPES
    require(known, "dtype", " or ".join(map(str, DTYPES)), value)
    return value


FORMS: dict[str, Callable[[Field, Any], Any]] = {
    "value": _value,
    "solver": _solver,
    "schedule": _schedule,
    "interval": _interval,
    "correction": _correction,
    "twin": _twin,
    "options": _options,
    "dtype": _dtype,
}
"""The check of what Python passes for a setting, by the form in its declaration."""

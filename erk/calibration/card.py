"""Cards: a correction in a small JSON file, with what it was made for (erk calibrate).

A card acts for its own network, solver, noise levels and model guidance alone. Cards come from
strangers: nothing of a file is believed before it is checked.
"""

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from erk.method.corrections import DIRECTIONS, Card, Correction, networks, no_gain
from erk.method.settings import RECIPE, Settings

__all__ = ["Card", "networks", "no_gain", "opened", "read_card", "recipe"]

FORMAT = "erk-guid card 1"
MOST_BYTES, MOST_LEVELS = 1 << 20, 4096
NETWORKS = ("network", "guide")
"""What a card is made for: the settings RECIPE and the sha256 of these files ("": unnamed)."""


def recipe(settings: Settings) -> dict[str, Any]:
    """Return what of the sampling settings a correction depends on, as JSON holds it."""
    return settings.recipe()


def read_card(place: str | os.PathLike[str]) -> Card:
    """The card in a file. Raises OSError, or ValueError if the file is not a whole, sane card."""
    path = Path(place)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than any card: it is none.")
    data = path.read_bytes()
    try:
        row = json.loads(data, parse_constant=_refuse)
        if row["format"] != FORMAT:
            raise ValueError
        return Card(_correction(row), _made_for(row["for"]), _ratio(row.get("held_out")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError(
            f"{path} is not a card of erk calibrate ('{FORMAT}'), or it is damaged: make it anew."
        ) from None


def opened(erk: Any) -> Any:
    """What `erk=` names: "auto", a Card or a Correction as they are, a file's card; ValueError."""
    if erk == "auto" or not isinstance(erk, str | os.PathLike):
        return erk
    if not Path(erk).is_file():
        raise ValueError(
            "erk must be 'auto', a card of erk calibrate or a Correction; there is no "
            f"file '{erk}'."
        )
    return read_card(erk)


def _correction(row: dict[str, Any]) -> Correction:
    sigmas, names = _numbers(row["sigmas"]), tuple(row["directions"])
    weights = tuple(_numbers(weights) for weights in row["weights"])
    sane = (
        2 <= len(sigmas) <= MOST_LEVELS
        and sigmas[-1] > 0
        and all(a > b for a, b in pairwise(sigmas))
        and 1 <= len(names) == len({*names} & {*DIRECTIONS})
        and len(weights) == len(sigmas) - 1
        and all(len(row) == len(names) for row in weights)
    )
    if not sane:
        raise ValueError
    return Correction(sigmas, names, weights)


def _made_for(row: dict[str, Any]) -> dict[str, Any]:
    if {*row} != {*RECIPE, *NETWORKS}:
        raise ValueError
    return row


def _ratio(row: Any) -> tuple[float, ...] | None:
    return None if row is None else _numbers([row["ratio"]["value"], row["ratio"]["error"]])


def _numbers(values: Any) -> tuple[float, ...]:
    if not (
        isinstance(values, list)
        and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    ):
        raise ValueError
    return tuple(float(v) for v in values)


def _refuse(constant: str) -> float:
    raise ValueError(constant)

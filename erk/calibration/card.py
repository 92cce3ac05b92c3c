"""Cards: a correction in a small JSON file, with what it was made for (erk calibrate).

A card acts for its own network, solver, noise levels and model guidance alone. Cards come from
strangers: nothing of a file is believed before it is checked.
"""

import hashlib
import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from erk.method.corrections import DIRECTIONS, Correction
from erk.method.schedule import SCHEDULES
from erk.method.solvers import default_options

FORMAT = "erk-guid card 1"
MOST_BYTES, MOST_LEVELS = 1 << 20, 4096
SAME = ("solver", "steps", "sigma_min", "sigma_max", "guidance", "afs", "denoise_to_zero")
RECIPE = (*SAME, "solver_options", "schedule", "rho", "guidance_interval")
NETWORKS = ("network", "guide")
"""What a card is made for: the settings RECIPE and the sha256 of these files ("": unnamed)."""


class Card(NamedTuple):
    """A correction and what it is for."""

    correction: Correction
    made_for: dict[str, Any]  # values of RECIPE and NETWORKS
    ratio: tuple[float, ...] | None = None  # of held-out errors after / before; standard error

    @property
    def key(self) -> str:
        """Names what the card does: equal coefficients for the same case, equal samples."""
        told = json.dumps([self.correction, self.made_for], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def doubt(self) -> str:
        """A sentence if the card did not lower the error when it was made, "" if it did."""
        if self.ratio is None or not no_gain(*self.ratio):
            return ""
        value, error = self.ratio
        return (
            f"this card did not help when it was made (error {value:.3f} +- {error:.3f} of the "
            "plain solver's on held-out seeds): leave it out."
        )


def no_gain(ratio: float, error: float) -> bool:
    """Whether a held-out ratio of errors is not below 1 by its standard error."""
    return ratio + error > 1


def recipe(settings: Any) -> dict[str, Any]:
    """What of the sampling settings a correction depends on, as JSON holds it.

    Options that a solver and a schedule have anyway are filled in. ValueError for a solver that is
    a function: a card could not name it.
    """
    if not isinstance(settings.solver, str):
        raise ValueError("a card knows solvers by name: give a solver of docs/solvers.md.")
    schedule, rho, interval = settings.schedule, settings.rho, settings.guidance_interval
    named = isinstance(schedule, str)
    known = default_options(settings.solver) | settings.solver_options
    return {name: getattr(settings, name) for name in SAME} | {
        "steps": settings.steps if named else len(schedule) - 1,
        "solver_options": known,
        "schedule": schedule if named else [float(level) for level in schedule],
        "rho": (SCHEDULES[schedule][1] if rho is None else rho) if named else None,
        "guidance_interval": None if interval is None else [float(bound) for bound in interval],
    }


def networks(model: Any, guide_model: Any, guidance: float) -> dict[str, Any]:
    """Which files the denoisers come from, by sha256; no guide where none acts."""
    guide = None if guidance == 1 else getattr(guide_model, "sha256", "")
    return {"network": getattr(model, "sha256", ""), "guide": guide}


def check_made_for(card: Card, here: dict[str, Any]) -> None:
    """ValueError, one sentence with the differing keys, if the card is for something else."""
    there = card.made_for
    pairs = [
        f"{key} {_short(there[key])} there, {_short(value)} here"
        for key, value in here.items()
        if there[key] != value
    ]
    if pairs:
        raise ValueError(
            f"this card was made for something else ({'; '.join(pairs)}): make one for this "
            "(erk calibrate), or sample with the card's settings."
        )


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
            f"{path} is not a card of erk calibrate ('{FORMAT}'), or it is damaged: make it "
            "anew."
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


def _short(value: Any) -> str:
    """A value in a message: not longer than a line, files by the beginning of their hash."""
    text = str(value)
    if len(text) == 64 and text.isalnum():
        return text[:12]
    return text if len(text) <= 80 else text[:77] + "..."

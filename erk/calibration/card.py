"""Calibration cards: a correction in a small JSON file, with the settings and networks it is for.

Cards are shared files: nothing in one is used before it is validated.
"""

import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from erk.io.atomic import write_file
from erk.io.cache import save_json
from erk.io.files import read_regular
from erk.io.untrusted import parse_json
from erk.method.corrections import DIRECTIONS, Card, Correction
from erk.method.settings import RECIPE

FORMAT: Literal["erk-guid card 1"] = "erk-guid card 1"
MOST_BYTES, MOST_LEVELS = 1 << 20, 4096
NETWORKS = ("network", "guide")  # sha256 of the files; "" for a network without a file
CONTENT = ("sigmas", "directions", "weights")

Row = list[FiniteFloat]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Ratio(_Strict):
    value: FiniteFloat
    error: FiniteFloat


class _HeldOut(_Strict):
    ratio: _Ratio


class CardFile(_Strict):
    """The content of a card's file that is used for sampling."""

    format: Literal["erk-guid card 1"]
    recipe: dict[str, Any] = Field(alias="for")
    sigmas: Annotated[Row, Field(min_length=2, max_length=MOST_LEVELS)]
    directions: Annotated[list[str], Field(min_length=1)]
    weights: list[Row]
    held_out: _HeldOut | None = None

    @field_validator("recipe")
    @classmethod
    def _names_every_setting(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = {*value} ^ {*RECIPE, *NETWORKS}
        if wrong:
            raise ValueError(f"missing or unknown: {', '.join(sorted(wrong))}")
        return value

    @field_validator("sigmas")
    @classmethod
    def _decreases(cls, value: Row) -> Row:
        if value[-1] <= 0 or any(a <= b for a, b in pairwise(value)):
            raise ValueError("noise levels must be positive and strictly decreasing")
        return value

    @field_validator("directions")
    @classmethod
    def _are_known(cls, value: list[str]) -> list[str]:
        if len({*value} & {*DIRECTIONS}) < len(value):
            raise ValueError(f"must be different ones of {', '.join(DIRECTIONS)}")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> "CardFile":
        steps, width = len(self.sigmas) - 1, len(self.directions)
        if len(self.weights) != steps or any(len(row) != width for row in self.weights):
            raise ValueError(f"weights must be {steps} rows of {width} numbers")
        return self


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read a card. Raises OSError, or ValueError if the file is not a valid card."""
    data = read_regular(path, MOST_BYTES)
    try:
        row = parse_json(data)
        content = CardFile.model_validate(row)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a card of erk calibrate ('{FORMAT}'): {_reason(error)}; calibrate "
            "again, or give another file."
        ) from None
    correction = Correction(
        tuple(content.sigmas), tuple(content.directions), tuple(map(tuple, content.weights))
    )
    held_out = content.held_out
    ratio = None if held_out is None else (held_out.ratio.value, held_out.ratio.error)
    report = {name: row[name] for name in row if name not in ("format", "for", *CONTENT)}
    return Card(correction, content.recipe, ratio, report)


def write_card(path: str | os.PathLike[str], card: Card) -> None:
    """Write a card and its report to a JSON file, atomically. Raises OSError."""
    content = {"format": FORMAT, "for": card.recipe, **asdict(card.correction), **card.report}
    write_file(Path(path), save_json(content))


def open_card(erk: Any) -> Any:
    """Resolve `erk=`: read a card's path; "auto", a Card, a Correction and None stay as they are.

    Raises ValueError for a missing or invalid file.
    """
    if erk == "auto" or not isinstance(erk, str | os.PathLike):
        return erk
    if not Path(erk).is_file():
        raise ValueError(
            f"there is no card '{erk}': give auto (--erk auto, erk='auto'), or the file that "
            "erk calibrate writes."
        )
    return read_card(erk)


def _reason(error: ValueError) -> str:
    """Shorten an error of validation to its first fault."""
    if not isinstance(error, ValidationError):
        return "it is not JSON"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "content"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"

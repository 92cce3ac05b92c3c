"""Cards: a sampler in a small JSON file, with the networks that it is for and its errors.

Cards are shared files: nothing in one is used before it is validated.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from erk.calibration.problem import PARAMETERS, networks
from erk.io.atomic import write_file
from erk.io.cache import save_json
from erk.io.files import read_regular
from erk.io.untrusted import parse_json
from erk.method.corrections import DIRECTIONS, Correction
from erk.method.fields import field
from erk.method.settings import GUIDANCE, RECIPE, Settings
from erk.method.values import checked

FORMAT: Literal["erk-guid card 2"] = "erk-guid card 2"
MOST_BYTES, MOST_LEVELS = 1 << 20, 4096
WEIGHTS = ("w_stiff", "w_con", "erk_scale")
SAMPLER = (*RECIPE, *WEIGHTS)
"""The settings that a card holds, beside its correction and a rule of guidance (GUIDANCE)."""
DECIDED = (*SAMPLER, *GUIDANCE, "erk")
"""The settings that a card decides."""
FREE = ("dtype",)
"""Settings that may be given beside a card."""
UNKNOWN = "not from a file"


class Card(NamedTuple):
    """A sampler with the networks that it is for."""

    settings: Settings
    networks: dict[str, str | None]  # of `networks`
    nfe: int  # evaluations of the network per sample that it was calibrated for
    errors: dict[str, dict[str, float]]  # heun, published, card: `summary`; ratio: value, error
    report: dict[str, Any] = {}  # the computation, as JSON; not used in sampling

    def __str__(self) -> str:
        """The sampler and its errors in a few lines, with the warning if there is no gain."""
        names = {"heun": "Heun, EDM's schedule", "published": "best published sampler",
                 "card": "this card", "ratio": "ratio of the last two means"}  # fmt: skip
        match self.report.get("contenders"):  # of a file: not validated
            case [{"solver": solver, "schedule": schedule, "afs": afs}, *_]:
                first = ", analytic first step" if afs else ""
                names["published"] += f" ({_short(solver)}, {_short(schedule)}{first})"
        own = self.errors.get("card", {})
        seeds, more = own.get("seeds"), [name for name in ("median", "greatest") if name in own]
        table = [["", "mean ± standard error", *more]] + [
            [text, f"{one['value']:.4g} ± {one['error']:.2g}",
             *(f"{one[name]:.4g}" for name in more if name in one)]
            for name, text in names.items() if (one := self.errors.get(name))
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(2 + len(more))]
        fresh = f"{seeds} seeds" if seeds else "seeds"
        rows = [self._sampler(), f"distance to the converged solution, on {fresh} that neither the "
                "fit nor the choice has used:"]  # fmt: skip
        rows += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        if seeds:
            unseen = 100 * (1 - 0.05 ** (1 / seeds))
            rows.append(f"What happens to fewer than {unseen:.2g} % of samples may not show on "
                        f"{seeds} seeds (95 % confidence).")  # fmt: skip
        return "\n".join([*rows, *([self.warning.capitalize()] if self.warning else [])])

    def _sampler(self) -> str:
        s = self.settings
        guided = f", guidance {s.guidance:g}" if s.guidance != 1 else ""
        options = ", ".join(f"{name} {value}" for name, value in s.solver_options.items())
        levels = s.erk.sigmas if isinstance(s.erk, Correction) else s.levels
        shown = f"{levels} schedule, {s.steps} steps"
        if not isinstance(levels, str):
            shown = f"{len(levels)} noise levels from {levels[0]:.4g} to {levels[-1]:.4g}"
        first = ", analytic first step" if s.afs else ""
        nfe = f"at most {self.nfe} evaluations"
        return f"{s.solver}{f' ({options})' if options else ''}, {shown}{first}, {nfe}{guided}"

    @property
    def key(self) -> str:
        """SHA-256 of all that decides samples: settings, coefficients, networks."""
        content = json.dumps([self.settings.identity(), self.networks], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def warning(self) -> str:
        """A sentence if the card did not lower the error on fresh seeds, "" if it did."""
        value, error = (self.errors["ratio"][name] for name in ("value", "error"))
        if value + error < 1:
            return ""
        says = (
            f"on fresh seeds the error of this card is {value:.3f} ± {error:.3f} of that of the "
            "best published sampler"
        )
        if value - error < 1:  # a few seeds that end elsewhere decide both means
            return f"no gain that these seeds could show: {says}; calibrate with more seeds."
        return f"no gain: {says}."

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card and its report to a JSON file, atomically. Raises OSError.

        Folders that do not exist are made.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), save_json(content_of(self)))

    def sampler_for(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that this card decides; warn of a card without gain.

        Raises ValueError for settings `given` that contradict them.
        """
        self.check_given(given)
        if self.warning:
            warnings.warn(self.warning, stacklevel=3)
        return {name: getattr(self.settings, name) for name in DECIDED}

    def check(self, model: Any, guide_model: Any, wrapped: bool = False) -> None:
        """Raise ValueError unless the card is for these denoisers.

        `wrapped`: a host has put the network into a module of its own, which is not compared.
        """
        here = networks(model, guide_model, self.settings.guidance)
        pairs = [
            f"the card's {name}: {_short(there or UNKNOWN)}, this one: {_short(value or UNKNOWN)}"
            for name, value in here.items()
            if (there := self.networks.get(name, value)) != value
            and not (wrapped and name in PARAMETERS)
        ]
        if pairs:
            raise ValueError(
                f"this card is for other networks, or for these in another precision ("
                f"{'; '.join(pairs)}): calibrate for these (erk calibrate), or leave the card out."
            )

    def check_host(self, integration: str) -> None:
        """Raise ValueError for a rule of guidance that a host of samplers does not apply."""
        for name in ("guidance_kind", "guidance_interval"):
            value = getattr(self.settings, name)
            if value != field(name).default:
                raise ValueError(
                    f"the card is for {name} {value}, which {integration} does not apply: sample "
                    "with erk.sample(card=...) or erk generate --card."
                )

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raise ValueError for settings that contradict the card's."""
        unused = GUIDANCE if self.settings.guidance == 1 else ()
        for name, value in given.items():
            if name in (*FREE, *unused) or value is None:
                continue
            there, here = getattr(self.settings, name), checked(field(name), value)
            if name == "solver_options":  # defaults are filled in
                here = there | here
            if here != there:
                shown = "a correction" if isinstance(there, Correction) else there
                raise ValueError(
                    f"the card sets {name} to {_short(shown)}, which contradicts "
                    f"{_short(value)}: leave {name} out, or the card."
                )


Row = list[FiniteFloat]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Value(_Strict):
    value: FiniteFloat
    error: FiniteFloat
    median: FiniteFloat = 0.0  # this and below: of distances, not of a ratio of means
    greatest: FiniteFloat = 0.0
    seeds: Annotated[int, Field(ge=1)] = 1


class _Correction(_Strict):
    sigmas: Annotated[Row, Field(min_length=2, max_length=MOST_LEVELS)]
    directions: Annotated[list[str], Field(min_length=1)]
    weights: list[Row]

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
    def _fit_together(self) -> "_Correction":
        steps, width = len(self.sigmas) - 1, len(self.directions)
        if len(self.weights) != steps or any(len(row) != width for row in self.weights):
            raise ValueError(f"weights must be {steps} rows of {width} numbers")
        return self


class _Networks(_Strict):
    network: str
    guide: str | None
    samples: str = ""  # their shape; see `networks`
    parameters: str = ""
    guide_parameters: str = ""


class CardFile(_Strict):
    """The content of a card's file that is used for sampling."""

    format: Literal["erk-guid card 2"]
    settings: dict[str, Any]
    correction: _Correction | None
    networks: _Networks
    nfe: Annotated[int, Field(ge=1)]
    errors: dict[str, _Value]

    @field_validator("settings")
    @classmethod
    def _names_every_setting(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = {*SAMPLER} - {*value} | {*value} - {*SAMPLER, *GUIDANCE}
        if wrong:
            raise ValueError(f"missing or unknown: {', '.join(sorted(wrong))}")
        return value

    @field_validator("errors")
    @classmethod
    def _has_a_ratio(cls, value: dict[str, _Value]) -> dict[str, _Value]:
        if "ratio" not in value:
            raise ValueError("missing: ratio")
        return value

    def sampler(self) -> Settings:
        """Return the settings. Raises ValueError."""
        levels, one = self.settings["schedule"], self.correction
        if isinstance(levels, list) and len(levels) > MOST_LEVELS:
            raise ValueError(f"a card has at most {MOST_LEVELS} noise levels")
        if one is None:
            return Settings(**self.settings)
        weights = tuple(map(tuple, one.weights))
        correction = Correction(tuple(one.sigmas), tuple(one.directions), weights)
        return Settings(**self.settings, erk=correction)


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read a card. Raises OSError, or ValueError if the file is not a valid card."""
    data = read_regular(path, MOST_BYTES)
    row = None
    with suppress(ValueError):  # refused below: it is no card
        row = parse_json(data)
    return parse_card(row, path)


def parse_card(row: Any, source: Any) -> Card:
    """Return the card of a file's content, as JSON. Raises ValueError if it is not valid."""
    try:
        content = CardFile.model_validate(row)
        settings = content.sampler()
    except ValueError as error:
        raise ValueError(
            f"{source} is not a card of erk calibrate ('{FORMAT}'): "
            f"{'it is not JSON' if row is None else _reason(error)}; calibrate "
            "again, or give another file."
        ) from None
    report = {name: row[name] for name in row if name not in CardFile.model_fields}
    errors = {name: one.model_dump(exclude_unset=True) for name, one in content.errors.items()}
    named = content.networks.model_dump(exclude_unset=True)
    return Card(settings, named, content.nfe, errors, report)


def content_of(card: Card) -> dict[str, Any]:
    """Return the content of a card's file."""
    correction = card.settings.erk
    return {
        "format": FORMAT,
        "settings": sampler_of(card.settings),
        "correction": asdict(correction) if isinstance(correction, Correction) else None,
        "networks": card.networks,
        "nfe": card.nfe,
        "errors": card.errors,
        **card.report,
    }


def sampler_of(settings: Settings) -> dict[str, Any]:
    """Return the settings that a card holds, as JSON holds them, with their defaults."""
    return settings.recipe() | {name: getattr(settings, name) for name in WEIGHTS}


def open_card(card: Any) -> Card:
    """Return a card: one that is given, that of a file, or that of a file's content.

    Raises FileNotFoundError for a missing file, ValueError for what is no card.
    """
    if isinstance(card, Card):
        return card
    if isinstance(card, Mapping):
        return parse_card(parse_json(save_json(dict(card))), "this content")
    if not isinstance(card, str | os.PathLike):
        raise ValueError(f"card must be a Card or the path of one, not {_short(card)}.")
    if not Path(card).is_file():
        raise FileNotFoundError(
            f"there is no card '{card}': give the file that erk calibrate writes."
        )
    return read_card(card)


def _reason(error: ValueError) -> str:
    """Shorten an error of validation to its first fault."""
    if not isinstance(error, ValidationError):
        return str(error).rstrip(".")
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "content"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _short(value: Any) -> str:
    """Format a value for a message, truncated to 80 characters, hashes to 12."""
    text = str(value)
    if len(text) == 64 and text.isalnum():
        return text[:12]
    return text if len(text) <= 80 else text[:77] + "..."

"""A card among the options of `erk generate`: it sets the sampler; nothing may contradict it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from erk.calibration.card import DECIDED, Card, open_card
from erk.method.settings import Settings

FIELDS = {"solver_option": "solver_options", "pc_deterministic": "pc_stochastic"}
"""Options whose setting has another name."""


def open_with_guidance(options: dict[str, Any]) -> tuple[Card | None, dict[str, Any]]:
    """Open the card, if any, and return the options with its guidance where none is given.

    Raises FileNotFoundError for a missing file, ValueError for one that is no card.
    """
    if options["card"] is None:
        return None, options
    card = open_card(options["card"])
    if options["guidance"] is options["preset"] is None:
        options = options | {"guidance": card.settings.guidance}
    if options["given"] is not None and "guidance_kind" not in options["given"]:
        options = options | {"guidance_kind": card.settings.guidance_kind}
    return card, options


def apply_card(
    card: Card, settings: Settings, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Settings:
    """Replace the sampler of the options by the card's.

    Raises ValueError for a given option (`options["given"]`; if None, one that is not the default)
    that contradicts the card.
    """
    names = options["given"]
    if names is None:
        names = [name for name in defaults if options.get(name) != defaults[name]]
    names = [FIELDS.get(name, name) for name in names]
    known = [name for name in names if name in Settings.__dataclass_fields__]
    card.check_given({name: getattr(settings, name) for name in ("guidance", *known)})
    return replace(settings, **{n: getattr(card.settings, n) for n in DECIDED})

"""Cards for the tests of the integrations: calibrated for nothing, with coefficients that act."""

from erk.calibration.card import Card
from erk.method.corrections import Correction
from erk.method.settings import Settings

LEVELS = [10.0, 4.0, 1.5, 0.5, 0.1, 0.0]


def card_of(solver="heun", levels=LEVELS, networks=("", None), **settings):
    positive = [level for level in levels if level > 0]
    weights = tuple((0.3, -0.1) for _ in positive[1:])
    erk = Correction(tuple(positive), ("embedded", "change"), weights)
    names = dict(zip(("network", "guide"), networks, strict=True))
    ratio = {"ratio": {"value": 0.5, "error": 0.1}}
    return Card(Settings(solver=solver, schedule=levels, erk=erk, **settings), names, 8, ratio)


def card_file(folder, *args, **settings):
    card_of(*args, **settings).save(folder / "card.json")
    return str(folder / "card.json")

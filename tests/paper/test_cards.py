"""Rows of tables whose sampler is a card of erk calibrate."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import erk
from erk.calibration.card import Card, read_card
from erk.calibration.problem import count_nfe
from erk.commands import calibrating
from erk.generation.options import networks_of, settings_of
from erk.method.corrections import Correction
from erk.method.settings import Settings
from metrics.references import known_references
from scripts.paper import rows as paper_rows
from scripts.paper.cards import make_card
from scripts.paper.config import Experiment, Request, load_config
from scripts.paper.plan import cost_of, options_of_row, ref_of
from scripts.paper.scales import at_scale

PUBLISHED = {  # iPNDM-4 at NFE 5, 6, 8, 10: FID of diff-sampler
    "cifar10": (13.59, 7.05, 3.69, 2.77),
    "ffhq64": (17.17, 10.03, 5.52, 3.98),
    "imagenet64-edm": (18.99, 12.92, 7.20, 5.11),
}
SEARCH = {"nfe": 5, "solver": "heun", "corrections": ["none", "stepwise"]}


@pytest.mark.parametrize("scale", ["paper", "mnist"])
def test_the_rows_beyond_the_paper(scale):
    """Every sampler has the evaluations of its budget; Heun alone has one fewer at even ones."""
    request = Request(scale=scale)
    config = at_scale(load_config("beyond"), request)
    budgets = Counter()
    for row in config.rows:
        options = options_of_row(config, row, request)
        budget = int(row.name.split(", ")[1].removeprefix("NFE "))
        settings = settings_of(options, networks_of(options)[2])
        assert count_nfe(settings) == (budget, 0) and cost_of(options).nfe == budget
        assert (row.card is not None) == row.name.endswith("card")
        assert row.against is None or row.against.endswith(f"NFE {budget}, iPNDM-4")
        budgets[budget] += 1
    assert {*budgets} == {5, 6, 8, 10} and len({*budgets.values()}) == 1
    assert budgets[5] == 5 * (4 if scale == "paper" else 3)


def test_published_values_beyond_the_paper():
    config = load_config("beyond")
    published = {name: [] for name in PUBLISHED}
    for row in config.rows:
        if row.published:
            assert row.name.endswith("iPNDM-4") and row.settings["steps"] == row.published["nfe"]
            published[ref_of(config, row)].append(row.published["fid"])
    assert {name: tuple(values) for name, values in published.items()} == PUBLISHED
    assert {ref_of(config, row) for row in config.rows} <= {*known_references()}


def table(folder, search, num=20):
    """A table of one row, whose sampler is a card, at a small scale."""
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({
        "title": "t", "kind": "sampled", "paper": "p", "columns": ["fid"], "best": {"fid": "low"},
        "num": num, "seeds": 0, "ref": "digits",
        "rows": [{"name": "card", "settings": {"preset": "digits"}, "card": search}],
    }))  # fmt: skip
    return load_config(path), Request(results=folder / "results")


def test_a_card_is_searched_once_and_samples_its_row(tmp_path, monkeypatch):
    """The search has what the row gives; the row has the card's sampler and evaluations."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    config, request = table(tmp_path, SEARCH)
    asked = []

    def fake_calibration(options):
        asked.append(options)
        Path(options["out"]).parent.mkdir(parents=True)
        settings = Settings(steps=3)
        sigmas = tuple(settings.sigmas()[:-1].tolist())
        correction = Correction(sigmas, ("embedded",), ((-0.2,), (-0.3,)))
        networks = {"network": erk.load_model("digits").sha256, "guide": None}
        errors = {"ratio": {"value": 0.5, "error": 0.02}}
        Card(replace(settings, erk=correction), networks, 5, errors).save(options["out"])

    monkeypatch.setattr(calibrating, "run_calibration", fake_calibration)
    rows = paper_rows.Rows([Experiment(config, request)])
    assert rows.finished(0) == [{}] and rows.measure()
    (row,) = rows.finished(0)
    used = read_card(asked[0]["out"]).settings.identity()
    assert used["erk"].startswith("correction") and row["settings"]["erk"] == used["erk"]
    assert [*(tmp_path / "results" / "cards").iterdir()] == [Path(asked[0]["out"])]
    assert row["settings"]["solver"] == "heun" and row["nfe"] == 5
    assert [asked[0][name] for name in ("preset", "nfe", "solver", "schedule", "corrections")] == [
        "digits", 5, "heun", None, ("none", "stepwise"),
    ]  # fmt: skip
    make_card(config.rows[0], options_of_row(config, config.rows[0], request))
    assert len(asked) == 1


def test_a_search_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row 0 'card': card.corrections.*not 'guess'"):
        table(tmp_path, SEARCH | {"corrections": ["guess"]})

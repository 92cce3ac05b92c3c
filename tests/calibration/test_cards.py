"""Cards of calibrated corrections: read with suspicion, used for what they were made for alone."""

import json

import pytest
import torch
from click.testing import CliRunner

import erk
from erk.calibration.card import FORMAT, Card, read_card, recipe
from erk.commands import generate
from erk.method.settings import Settings


def row(**changes):
    """A sane card as JSON would hold it, for the digits network at 3 steps."""
    made_for = recipe(Settings(steps=3)) | {
        "network": erk.load_model("digits").sha256,
        "guide": None,
    }
    sigmas = Settings(steps=3).sigmas()[:-1].tolist()
    told = {
        "format": FORMAT,
        "for": made_for,
        "sigmas": sigmas,
        "directions": ["drift", "embedded"],
        "weights": [[0.01, -0.2], [0.0, -0.3]],
    }
    return told | changes


def written(folder, told):
    place = folder / "a.card.json"
    place.write_text(told if isinstance(told, str) else json.dumps(told))
    return place


def start(n=3):
    model = erk.load_model("digits")
    return (model, *erk.noise_and_labels(range(n), model))


def test_a_path_a_card_and_its_correction_act_alike(tmp_path):
    place = written(tmp_path, row())
    card = read_card(place)
    assert isinstance(card, Card) and len(card.key) == 64
    given = (place, str(place), card, card.correction)
    ends = [erk.sample(*start(), steps=3, erk=one) for one in given]
    assert all(torch.equal(ends[0], end) for end in ends[1:])
    assert not torch.equal(ends[0], erk.sample(*start(), steps=3))


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"steps": 4}, "steps 3 there, 4 here"),
        ({"steps": 3, "solver": "dpm2"}, "solver heun there, dpm2 here"),
        ({"steps": 3, "rho": 5.0}, "rho 7.0 there, 5.0 here"),
        ({"steps": 3, "schedule": "logsnr", "sigma_max": 40.0}, "schedule edm there, logsnr here"),
        ({"steps": 3, "afs": True}, "afs False there, True here"),
    ],
)
def test_a_card_for_other_settings_is_refused_before_any_network_is_read(tmp_path, settings, keys):
    with pytest.raises(ValueError, match=keys):
        Settings(erk=read_card(written(tmp_path, row())), **settings)


def test_a_card_of_another_network_or_guide_is_refused(tmp_path):
    model, noise, labels = start()
    other = erk.load_model("checkpoints/digits-weak.safetensors")
    place = written(tmp_path, row())
    with pytest.raises(ValueError, match=r"network 047acbb706a0 there, \w{12} here"):
        erk.sample(other, noise, labels, steps=3, erk=place)
    guided = row()["for"] | {"guidance": 2.0, "guide": "f" * 64}
    place = written(tmp_path, row(**{"for": guided}))
    with pytest.raises(ValueError, match=r"guide ffffffffffff there, \w{12} here"):
        erk.sample(model, noise, labels, steps=3, erk=place, guidance=2.0, guide_model=other)


def test_values_that_a_solver_has_anyway_need_not_be_said(tmp_path):
    given = Settings(erk=read_card(written(tmp_path, row())), steps=3, rho=7.0, sigma_max=80)
    assert given.erk.recipe["rho"] == 7.0


@pytest.mark.parametrize(
    "told",
    [
        "",
        "[]",
        "[" * 100_000,
        json.dumps(row(format="other")),
        json.dumps(row(weights=[[0.1, 0.1]])),
        json.dumps(row(weights=[[0.1], [0.1]])),
        json.dumps(row(weights=[[0.1, "0.1"], [0.0, 0.0]])),
        json.dumps(row(weights=[[0.1, True], [0.0, 0.0]])),
        json.dumps(row(weights=[[0.1, float("nan")], [0.0, 0.0]])),
        json.dumps(row(weights=[[0.1, 10**400], [0.0, 0.0]])),
        json.dumps(row(directions=["drift", "os.system"])),
        json.dumps(row(directions=["drift", "drift"])),
        json.dumps(row(directions=[["drift"], {}])),
        json.dumps(row(sigmas=[1.0, 2.0, 3.0])),
        json.dumps(row(sigmas=[3.0, 2.0, 0.0])),
        json.dumps(row(**{"for": {}})),
        json.dumps(row(**{"for": None})),
        json.dumps(row(held_out={"ratio": 0.5})),
        json.dumps(row(held_out={"ratio": {"value": "0.5", "error": 0.1}})),
    ],
)
def test_damaged_and_hostile_cards_are_refused_in_one_sentence(tmp_path, told):
    with pytest.raises(ValueError, match=r"is not a card of erk calibrate .*: make it anew"):
        Settings(steps=3, erk=read_card(written(tmp_path, told)))


def test_a_huge_file_is_not_read(tmp_path):
    place = tmp_path / "a.card.json"
    with open(place, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="larger than any card"):
        read_card(place)


def test_a_solver_without_a_name_has_no_card():
    with pytest.raises(ValueError, match="knows solvers by name"):
        recipe(Settings(solver=lambda *args: None))


def test_a_cards_key_is_what_it_does_not_how_the_file_is_written(tmp_path):
    keys = {read_card(written(tmp_path, one)).key for one in (row(), row(explained=[0.1, 0.2]))}
    indented = written(tmp_path, json.dumps(dict(reversed(row().items())), indent=3))
    assert keys == {read_card(indented).key}
    for other in (row(weights=[[0.01, -0.2], [0.0, -0.31]]), row(directions=["drift", "pair"])):
        assert read_card(written(tmp_path, other)).key not in keys


def test_a_card_that_did_not_help_says_so_when_it_is_used(tmp_path):
    bad = {"ratio": {"value": 0.99, "error": 0.02}}
    with pytest.warns(UserWarning, match="did not help .* 0.990 .* leave it out"):
        erk.sample(*start(1), steps=3, erk=written(tmp_path, row(held_out=bad)))
    job = ["--preset", "digits", "--seeds", "0", "--steps", "3", "--outdir", str(tmp_path / "a")]
    done = CliRunner().invoke(generate.main, [*job, "--erk", str(tmp_path / "a.card.json")])
    assert done.exit_code == 0 and done.stderr.count("did not help") == 1
    good = {"ratio": {"value": 0.5, "error": 0.02}}
    assert read_card(written(tmp_path, row(held_out=good))).warning == ""
    assert read_card(written(tmp_path, row())).warning == ""

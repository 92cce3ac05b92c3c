"""Cards are validated, and used for the settings and networks they are for alone."""

import json
import os

import pytest
import torch

import erk
from erk.calibration.card import FORMAT, open_card, read_card
from erk.io.files import IrregularFileError
from erk.method.settings import Settings


def content(**changes):
    """A valid card's JSON, for the digits network at 3 steps."""
    networks = {"network": erk.load_model("digits").sha256, "guide": None}
    settings = Settings(steps=3, schedule="edm")
    card = {
        "format": FORMAT,
        "for": settings.recipe() | networks,
        "sigmas": settings.sigmas()[:-1].tolist(),
        "directions": ["drift", "embedded"],
        "weights": [[0.01, -0.2], [0.0, -0.3]],
    }
    return card | changes


def written(folder, card):
    path = folder / "a.card.json"
    path.write_text(card if isinstance(card, str) else json.dumps(card))
    return path


def start(n=3):
    model = erk.load_model("digits")
    return (model, *erk.noise_and_labels(range(n), model))


def sample(erk_argument, *arguments, **settings):
    return erk.sample(*arguments, steps=3, schedule="edm", erk=erk_argument, **settings)


def test_a_path_a_card_and_its_correction_act_alike(tmp_path):
    path = written(tmp_path, content())
    card = read_card(path)
    ends = [sample(one, *start()) for one in (path, str(path), card, card.correction)]
    assert all(torch.equal(ends[0], end) for end in ends[1:])
    assert not torch.equal(ends[0], sample(None, *start()))


def test_what_names_no_card_is_refused(tmp_path):
    assert open_card("auto") == "auto" and open_card(None) is None
    with pytest.raises(ValueError, match="there is no card"):
        open_card(tmp_path / "missing.card.json")


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"steps": 4}, "steps 3 there, 4 here"),
        ({"solver": "dpm2"}, "solver heun there, dpm2 here"),
        ({"rho": 5.0}, "rho 7.0 there, 5.0 here"),
        ({"schedule": "logsnr", "sigma_max": 40.0}, "schedule edm there, logsnr here"),
        ({"afs": True}, "afs False there, True here"),
    ],
)
def test_a_card_for_other_settings_is_refused_before_any_network_is_read(tmp_path, settings, keys):
    card = read_card(written(tmp_path, content()))
    with pytest.raises(ValueError, match=keys):
        Settings(**{"steps": 3, "schedule": "edm", "erk": card} | settings)


def test_a_card_of_another_network_or_guide_is_refused(tmp_path):
    model, noise, labels = start()
    other = erk.load_model("checkpoints/digits-weak.safetensors")
    with pytest.raises(ValueError, match=r"network 047acbb706a0 there, \w{12} here"):
        sample(written(tmp_path, content()), other, noise, labels)
    guided = content()["for"] | {"guidance": 2.0, "guide": "f" * 64}
    path = written(tmp_path, content(**{"for": guided}))
    with pytest.raises(ValueError, match=r"guide ffffffffffff there, \w{12} here"):
        sample(path, model, noise, labels, guidance=2.0, guide_model=other)


def test_defaults_of_solver_and_schedule_need_not_be_given(tmp_path):
    card = read_card(written(tmp_path, content()))
    Settings(erk=card, steps=3, schedule="edm", rho=7.0, sigma_max=80)


@pytest.mark.parametrize(
    ("card", "fault"),
    [
        ("", "not JSON"),
        ("[]", "content"),
        ("[" * 100_000, "not JSON"),
        (content(format="other"), "format"),
        (content(weights=[[0.1, 0.1]]), "2 rows of 2"),
        (content(weights=[[0.1], [0.1]]), "2 rows of 2"),
        (content(weights=[[0.1, "0.1"], [0.0, 0.0]]), "weights.0.1"),
        (content(weights=[[0.1, True], [0.0, 0.0]]), "weights.0.1"),
        (content(weights=[[0.1, float("nan")], [0.0, 0.0]]), "not JSON"),
        (content(weights=[[0.1, 10**400], [0.0, 0.0]]), "not JSON"),
        (content(directions=["drift", "os.system"]), "directions"),
        (content(directions=["drift", "drift"]), "directions"),
        (content(directions=[["drift"], {}]), "directions.0"),
        (content(directions=[], weights=[[], []]), "directions"),
        (content(sigmas=[1.0, 2.0, 3.0]), "sigmas"),
        (content(sigmas=[3.0, 2.0, 0.0]), "sigmas"),
        (content(**{"for": {}}), "for: missing"),
        (content(**{"for": None}), "for"),
        (content(held_out={"ratio": 0.5}), "held_out.ratio"),
        (content(held_out={"ratio": {"value": "0.5", "error": 0.1}}), "held_out.ratio.value"),
    ],
)
def test_invalid_and_hostile_cards_are_refused_with_their_fault(tmp_path, card, fault):
    with pytest.raises(ValueError, match=r"is not a card of erk calibrate") as error:
        read_card(written(tmp_path, card))
    assert fault in str(error.value) and len(str(error.value)) < 1000


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "a.card.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="has more than 1048576 bytes"):
        read_card(path)


def test_a_solver_without_a_name_has_no_card():
    with pytest.raises(ValueError, match="by name"):
        Settings(solver=lambda *args: None).recipe()


def test_a_cards_key_is_what_it_does_not_what_else_the_file_says(tmp_path):
    key = read_card(written(tmp_path, content())).key
    same = (content(explained=[0.1, 0.2]), json.dumps(dict(reversed(content().items())), indent=3))
    assert {read_card(written(tmp_path, one)).key for one in same} == {key}
    other = (content(weights=[[0.01, -0.2], [0.0, -0.31]]), content(directions=["drift", "pair"]))
    assert key not in {read_card(written(tmp_path, one)).key for one in other}


def test_a_card_without_gain_warns_when_it_is_used(tmp_path):
    bad = {"ratio": {"value": 0.99, "error": 0.02}}
    with pytest.warns(UserWarning, match="0.990 .* leave it out"):
        sample(written(tmp_path, content(held_out=bad)), *start(1))
    good = {"ratio": {"value": 0.5, "error": 0.02}}
    assert read_card(written(tmp_path, content(held_out=good))).warning == ""
    assert read_card(written(tmp_path, content())).warning == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_no_card(tmp_path):
    """M23: reading one would wait for ever."""
    os.mkfifo(tmp_path / "card.json")
    with pytest.raises(IrregularFileError, match="card.json"):
        read_card(tmp_path / "card.json")

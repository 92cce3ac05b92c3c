"""Cards are validated, and used for the networks they are for alone."""

import copy
import json
import os

import pytest
import torch

import erk
from erk.calibration.card import FORMAT, content_of, open_card, read_card, sampler_of
from erk.calibration.problem import networks
from erk.io.files import IrregularFileError
from erk.method.corrections import Correction
from erk.method.settings import Settings

SETTINGS = Settings(steps=3, schedule="edm")
CORRECTION = {
    "sigmas": SETTINGS.sigmas()[:-1].tolist(),
    "directions": ["drift", "embedded"],
    "weights": [[0.01, -0.2], [0.0, -0.3]],
}
ERRORS = {"ratio": {"value": 0.5, "error": 0.02}}


def content(**changes):
    """A valid card's JSON, for the digits network at 3 steps."""
    card = {
        "format": FORMAT,
        "settings": sampler_of(SETTINGS),
        "correction": CORRECTION,
        "networks": {"network": erk.load_model("digits").sha256, "guide": None},
        "nfe": 5,
        "errors": ERRORS,
    }
    return card | changes


def correction(**changes):
    return content(correction=CORRECTION | changes)


def setting(**changes):
    return content(settings=sampler_of(SETTINGS) | changes)


def written(folder, card):
    path = folder / "a.card.json"
    path.write_text(card if isinstance(card, str) else json.dumps(card))
    return path


def start(n=3):
    model = erk.load_model("digits")
    return (model, *erk.noise_and_labels(range(n), model))


def test_a_path_a_card_and_its_settings_act_alike(tmp_path):
    path = written(tmp_path, content())
    card = read_card(path)
    ends = [erk.sample(*start(), card=one) for one in (path, str(path), card)]
    ends.append(erk.sample(*start(), steps=3, erk=card.settings.erk))
    assert all(torch.equal(ends[0], end) for end in ends[1:])
    assert not torch.equal(ends[0], erk.sample(*start(), steps=3))
    assert isinstance(card.settings.erk, Correction) and card.nfe == 5
    more = written(tmp_path, setting(w_stiff=0.5, w_con=0.3) | {"correction": None})
    assert torch.equal(erk.sample(*start(), card=more),
                       erk.sample(*start(), steps=3, w_stiff=0.5, w_con=0.3))  # fmt: skip


def test_what_is_no_card_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no card"):
        open_card(tmp_path / "missing.card.json")
    with pytest.raises(ValueError, match="card must be a Card or the path of one, not 3"):
        open_card(3)


def test_arguments_that_agree_with_the_card_may_be_given(tmp_path):
    card = read_card(written(tmp_path, content()))
    card.check_given({"steps": 3, "rho": 7, "schedule": "edm", "sigma_max": 80, "erk": None,
                      "solver_options": {}, "dtype": torch.float64})  # fmt: skip
    x0 = erk.sample(*start(), card=card, dtype=torch.float64, schedule="edm", steps=3)
    assert x0.dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 4}, "the card sets steps to 3, which contradicts 4: leave steps out"),
        ({"solver": "dpm2"}, "sets solver to heun"),
        ({"rho": 5.0}, "sets rho to 7.0"),
        ({"schedule": [80.0, 1.0, 0.1]}, "sets schedule to edm"),
        ({"afs": True}, "sets afs to False"),
        ({"guidance": 2.0}, "sets guidance to 1.0"),
        ({"guidance_interval": (0.1, 2.0)}, "sets guidance_interval to None"),
        ({"erk": "auto"}, "sets erk to a correction"),
        ({"solver_options": {"r": 0.3}}, "sets solver_options"),
    ],
)
def test_arguments_that_contradict_the_card_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        read_card(written(tmp_path, content())).check_given(given)


def test_a_rule_of_guidance_contradicts_a_card_of_another_weight_than_1(tmp_path):
    """At 1 it does nothing, so that a sweep over weights may give it throughout."""
    rule = {"guidance_kind": "apg", "apg_eta": 0.5}
    read_card(written(tmp_path, content())).check_given(rule)
    guided = setting(guidance=2.0)
    guided["networks"]["guide"] = ""
    with pytest.raises(ValueError, match="sets guidance_kind to cfg"):
        read_card(written(tmp_path, guided)).check_given(rule)


def test_a_card_of_another_network_or_guide_is_refused(tmp_path):
    model, noise, labels = start()
    other = erk.load_model("checkpoints/digits-weak.safetensors")
    with pytest.raises(ValueError, match=r"card.s network: \w{12}, this one: \w{12}"):
        erk.sample(other, noise, labels, card=written(tmp_path, content()))
    guided = setting(guidance=2.0)
    guided["networks"]["guide"] = "f" * 64
    path = written(tmp_path, guided)
    with pytest.raises(ValueError, match=r"card.s guide: ffffffffffff, this one: \w{12}"):
        erk.sample(model, noise, labels, card=path, guide_model=other)
    with pytest.raises(ValueError, match="guide: ffffffffffff, this one: not from a file"):
        erk.sample(model, noise, labels, card=path, guide_model=lambda x, sigma, labels: x)


def test_a_module_is_recognised_by_its_weights():
    """Also within an adapter, together with what it predicts, its times and noise levels."""
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    torch.manual_seed(0)
    one, other = torch.nn.Bilinear(2, 2, 2), torch.nn.Bilinear(2, 2, 2)
    same = copy.deepcopy(one)
    adapted = [
        erk.from_epsilon(one, table), erk.from_epsilon(other, table), erk.from_v(one, table),
        erk.from_epsilon(one, table[:500]), erk.from_denoiser(one, 0.002, 10.0),
        erk.from_flow(one), erk.from_flow(one, data_at=1), erk.from_denoiser(one), one, other,
    ]  # fmt: skip
    names = [networks(model, None, 1.0)["parameters"] for model in adapted]
    assert len({*names}) == len(names) and "" not in names
    assert networks(erk.from_epsilon(same, table), None, 1.0)["parameters"] == names[0]
    assert networks(torch.compile(same), None, 1.0)["parameters"] == names[8]
    meta, lazy = torch.nn.Bilinear(2, 2, 2, device="meta"), torch.nn.LazyLinear(2)
    for silent in (erk.from_flow(lambda x, t: x), torch.nn.Identity(), meta, lazy):
        assert "parameters" not in networks(silent, None, 1.0)


def test_a_card_of_a_function_is_for_samples_of_its_shape():
    """A function has no file to be known by."""

    class Gaussian:
        def __init__(self, shape):
            self.sample_shape = shape

        def __call__(self, x, sigma, labels=None):
            return x * 0.25 / (0.25 + sigma.reshape(-1, 1) ** 2)

    card = erk.calibrate(
        Gaussian([3]), 3, seeds=8, solver="heun", schedule="edm", corrections=()
    )  # fmt: skip
    again = open_card(content_of(card))
    assert again.key == card.key
    for same in ((3,), torch.Size([3]), torch.tensor([3]), 3, None):  # the last two do not say it
        again.check(Gaussian(same), None)
    again.check(lambda x, sigma, labels: x, None)
    with pytest.raises(ValueError, match=r"card.s samples: \[3\], this one: \[2\]"):
        again.check(Gaussian([2]), None)


@pytest.mark.parametrize(
    ("card", "fault"),
    [
        ("", "not JSON"),
        ("[]", "content"),
        ("[" * 100_000, "not JSON"),
        (content(format="erk-guid card 1"), "format"),
        (setting(guidance_kind="none"), "guidance_kind"),
        (setting(apg_eta=0.5), "apg_eta"),  # of a rule that the card does not have
        (setting(pc_snr=0.1), "unknown: pc_snr"),
        (correction(weights=[[0.1, 0.1]]), "2 rows of 2"),
        (correction(weights=[[0.1], [0.1]]), "2 rows of 2"),
        (correction(weights=[[0.1, "0.1"], [0.0, 0.0]]), "weights.0.1"),
        (correction(weights=[[0.1, True], [0.0, 0.0]]), "weights.0.1"),
        (correction(weights=[[0.1, float("nan")], [0.0, 0.0]]), "not JSON"),
        (correction(weights=[[0.1, 10**400], [0.0, 0.0]]), "not JSON"),
        (correction(directions=["drift", "os.system"]), "directions"),
        (correction(directions=["drift", "drift"]), "directions"),
        (correction(directions=[["drift"], {}]), "directions.0"),
        (correction(directions=[], weights=[[], []]), "directions"),
        (correction(sigmas=[1.0, 2.0, 3.0]), "sigmas"),
        (correction(sigmas=[3.0, 2.0, 0.0]), "sigmas"),
        (content(settings={}), "settings: missing"),
        (content(settings=None), "settings"),
        (setting(solver="os.system"), "os.system"),
        (setting(steps="3"), "steps must be"),
        (setting(schedule=[80.0] * 5000), "at most 4096 noise levels"),
        (setting(schedule=[1.0, 2.0]), "decreasing"),
        (setting(w_stiff=1.0), "leave w_stiff"),
        (content(networks={"network": 1, "guide": None}), "networks.network"),
        (content(nfe=0), "nfe"),
        (content(errors={}), "errors: missing: ratio"),
        (content(errors={"ratio": {"value": 0.5}}), "errors.ratio.error"),
    ],
)
def test_a_card_that_is_not_valid_is_refused(tmp_path, card, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        read_card(written(tmp_path, card))
    assert "is not a card of erk calibrate" in str(caught.value)


def test_only_regular_files_of_a_cards_size_are_read(tmp_path):
    path = tmp_path / "a.card.json"
    os.mkfifo(path)
    with pytest.raises(IrregularFileError):
        read_card(path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="has more than 1048576 bytes"):
        read_card(path)


def test_a_cards_key_is_what_it_does_not_what_else_the_file_says(tmp_path):
    key = read_card(written(tmp_path, content())).key
    same = (content(contenders=[]), json.dumps(dict(reversed(content().items())), indent=3))
    assert {read_card(written(tmp_path, one)).key for one in same} == {key}
    other = (correction(weights=[[0.01, -0.2], [0.0, -0.31]]),
             correction(directions=["drift", "pair"]), setting(afs=True))  # fmt: skip
    assert key not in {read_card(written(tmp_path, one)).key for one in other}


def test_a_card_without_gain_warns_when_it_is_used(tmp_path):
    bad = {"ratio": {"value": 0.99, "error": 0.02}}
    with pytest.warns(UserWarning, match=r"no gain that .* 0.990 ± 0.020 .*more seeds"):
        erk.sample(*start(1), card=written(tmp_path, content(errors=bad)))
    worse = content(errors={"ratio": {"value": 1.2, "error": 0.1}})
    assert read_card(written(tmp_path, worse)).warning.startswith("no gain: on fresh seeds")
    good = read_card(written(tmp_path, content()))
    assert good.warning == ""
    assert f"{good}".startswith(good.settings.solver) and "No gain" not in f"{good}"
    for contenders in ("text", [], [1], [{"solver": "deis"}]):
        one = read_card(written(tmp_path, content(contenders=contenders)))
        assert "published sampler (" not in f"{one}"
    shown = f"{read_card(written(tmp_path, content(errors=bad)))}"
    assert "\nNo gain that these seeds could show" in shown


def test_a_correction_for_other_levels_is_refused_when_it_is_used(tmp_path):
    path = written(tmp_path, setting(steps=4))
    with pytest.raises(ValueError, match="for other noise levels"):
        erk.sample(*start(), card=path)


def test_a_card_and_a_guide_belong_together():
    """A guide was ignored, or its absence called another network."""
    model, noise, labels = start()
    for guidance, given, message in (
        (1.0, {"guide_model": model, "guide_labels": labels}, "guide_model has no effect: leave"),
        (2.0, {}, "the card is for guidance 2: give the guide_model"),
        (2.0, {"guide_labels": labels}, "the card is for guidance 2: give the guide_model"),
    ):
        card = setting(guidance=guidance)
        card["networks"]["guide"] = None if guidance == 1 else "f" * 64
        with pytest.raises(ValueError, match=message):
            erk.sample(model, noise, labels, card=card, **given)
    assert ", at most 5 evaluations, guidance 2\n" in str(open_card(card))

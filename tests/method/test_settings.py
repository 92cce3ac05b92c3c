"""Settings: declared once, a union whose forbidden combinations are refused in one sentence."""

import ast
import builtins
import dataclasses
import itertools
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from problems import linear

import erk
from erk.method.corrections import Correction, auto
from erk.method.fields import field, fields
from erk.method.guidance import ErkGuid
from erk.method.settings import GUIDANCE, RECIPE, Settings
from erk.method.solvers import dpm2, heun

APG = dict(guidance=2.0, guidance_kind="apg")
BAD = {
    "unknown solver 'heum'; choose one of euler, heun, dpm2": dict(solver="heum"),
    "unknown schedule 'edn'": dict(schedule="edn"),
    "needs at least 2 steps, not 1": dict(steps=1),
    "0 < sigma_min < sigma_max < inf": dict(sigma_min=80.0),
    "takes no rho": dict(schedule="logsnr", rho=7.0),
    "strictly decreasing": dict(schedule=[1.0, 2.0, 0.0]),
    "at least two": dict(schedule=[1.0]),
    "set S_churn to 0": dict(w_stiff=1.0, S_churn=1.0),
    "has no option 'order'; it takes none": dict(solver_options={"order": 2}),
    "has no option 'r'; it takes order, mode": dict(solver="deis", solver_options={"r": 0.5}),
    "order of the solver 'deis' must be 1 to 4": dict(solver="deis", solver_options={"order": 5}),
    "r of the solver 'dpm2' must be": dict(solver="dpm2", solver_options={"r": 0}),
    "must be tab or rhoab": dict(solver="deis", solver_options={"mode": "x"}),
    "must be true or false": dict(solver="dpmpp", solver_options={"predict_x0": 1}),
    "erk_proj (--erk-proj) needs model guidance": dict(erk_proj=True),
    "ERK-Proj (erk_proj) has no effect": dict(erk_proj=True, guidance=2.0),
    "guidance_interval (--guidance-interval) needs": dict(guidance_interval=(0, 1)),
    "exclude each other": dict(w_stiff=1.0, pc_snr=0.1),
    "defined for the plain heun": dict(solver="euler", adaptive_tau=1.0),
    "leave out afs": dict(afs=True, adaptive_tau=1.0),
    "the noise levels end at 0 already": dict(denoise_to_zero=True),
    "levels end at 0 already": dict(schedule=[2.0, 1.0, 0.0], denoise_to_zero=True),
    "denoise_to_zero=False has no effect": dict(denoise_to_zero=False),
    "because the noise levels end at 0": dict(schedule=[2.0, 1.0, 0.0], denoise_to_zero=False),
    "lists 3 noise levels, so it has 2 steps and not 6": dict(schedule=[3, 2, 1], steps=6),
    "leave it out of a run with a list": dict(schedule=[3, 2, 1], rho=7.0),
    "leave out w_con, erk_scale and twin": dict(
        guidance=2.0, erk_proj=True, w_stiff=1.0, w_con=0.3
    ),
    "leave out twin.": dict(adaptive_tau=1.0, twin=lambda step, previous: (None, None)),
    "needs a network with a discrete time": dict(schedule="discrete"),
    "guidance 2 needs a guiding network": dict(guidance=2.0),
    "a card is given by `card`": dict(erk="automatic"),
    "leave w_stiff (--w-stiff) at 0": dict(erk="auto", w_stiff=1.0),
    "leave w_con (--w-con) at 0.5": dict(erk="auto", w_con=0.3),
    "leave erk_scale (--erk-scale) at quadratic": dict(erk="auto", erk_scale="abs"),
    "leave out twin": dict(erk="auto", twin=lambda step, previous: (None, None)),
    "deterministic steps": dict(erk="auto", S_churn=1.0),
    "the Langevin corrector": dict(erk="auto", pc_snr=0.1),
    "the Langevin corrector and adaptive_tau": dict(erk="auto", adaptive_tau=1.0),
    "guidance_kind (--guidance-kind) needs model guidance": dict(guidance_kind="apg"),
    "are for guidance_kind 'apg'": dict(guidance=2.0, apg_eta=0.5),
    "take euler, ipndm, ipndm_v, deis, dpmpp or unipc": dict(APG, apg_momentum=-0.5),
    "or set apg_momentum to 0": dict(APG, solver="euler", apg_momentum=-0.5, pc_snr=0.1),
    "takes a guidance from 0 to 1": dict(guidance_kind="cfg++", guidance=7.5),
    "defined for steps along the schedule": dict(guidance_kind="cfg++", guidance=0.6, S_churn=1),
    "two rules of model guidance": dict(APG, erk_proj=True, w_stiff=1.0),
}


@pytest.mark.parametrize(("message", "settings"), BAD.items(), ids=list(BAD))
def test_bad_settings_are_refused_with_one_sentence(message, settings):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        erk.sample(linear(1.0), torch.ones(1, 2), **settings)
    assert "\n" not in str(caught.value)


def test_all_settings_together_may_be_given():
    settings = Settings(solver="dpm2", steps=3)
    noise = torch.ones(1, 2)
    wanted = erk.sample(linear(1.0), noise, solver="dpm2", steps=3)
    assert torch.equal(erk.sample(linear(1.0), noise, **vars(settings)), wanted)
    erk.sample(linear(1.0), noise, **vars(Settings(steps=3)))
    erk.sample(linear(1.0), noise, schedule=[3.0, 2.0, 1.0], steps=2, denoise_to_zero=False)


def test_every_field_is_declared_once():
    """`Settings` has the declared fields, in order, with their defaults."""
    declared = {one.name: one.default for one in fields()}
    declared |= {"dtype": torch.float32, "guidance": 1.0}  # None is "not given"
    settings = Settings()
    assert [one.name for one in dataclasses.fields(Settings)] == list(declared)
    assert {name: getattr(settings, name) for name in declared} == declared


def test_every_field_says_what_it_is_and_how_it_is_spelt():
    for one in fields():
        assert one.help.endswith(".") and one.group, one.name
        assert one.option == "" or one.option.startswith("--"), one.name
        assert one.default in (None, *one.choices) or not one.choices, one.name
    assert field("w_stiff").option == "--w-stiff" and field("S_churn").option == "--S-churn"
    assert field("pc_stochastic").option == "--pc-deterministic" and not field("twin").option


def test_the_declarations_import_no_torch():
    tree = ast.parse(Path(erk.method.fields.__file__).read_text())
    imports = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imports == {"collections.abc", "typing"}


def test_construction_reads_no_file(monkeypatch):
    monkeypatch.setattr(builtins, "open", lambda *_: pytest.fail("a file was opened"))
    with pytest.raises(ValueError, match="a card is given by `card`"):
        Settings(erk="a.card.json")
    Settings(erk="auto", solver="deis")


def test_the_identity_is_plain_and_names_the_schedule():
    guided = dict(solver="deis", guidance_interval=(0.1, 1.0), **APG)
    identity = Settings(**guided).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert list(identity) == [one.name for one in fields() if one.name != "churn_rule"]
    assert identity["schedule"] == "time_uniform" and identity["S_max"] == "inf"
    assert identity == Settings(schedule="time_uniform", **guided).identity()
    assert identity != Settings(solver="deis").identity()


def test_the_identity_names_the_rule_of_guidance_that_is_used():
    """M5: what a run with CFG says is what it said before there were other rules."""
    eta = Settings(**APG, apg_eta=0.5).identity()
    assert {name: value for name, value in eta.items() if name in GUIDANCE} == {
        "guidance_kind": "apg", "apg_eta": 0.5, "apg_threshold": 0.0, "apg_momentum": 0.0
    }  # fmt: skip
    plus = Settings(guidance=0.5, guidance_kind="cfg++").identity()
    assert [name for name in plus if name in GUIDANCE] == ["guidance_kind"]
    assert not {*Settings(guidance=2.0).identity()} & {*GUIDANCE}
    assert eta != Settings(**APG).identity()


def test_the_identity_tells_corrections_apart():
    levels = torch.tensor([3.0, 1.0, 0.5])
    sigmas = Settings(schedule=levels).sigmas()
    given = auto(Settings(schedule=levels).solver_for(sigmas, None), sigmas)
    other = dataclasses.replace(given, weights=((0.25,), (0.5,)))
    values = {Settings(schedule=levels, erk=erk_).identity()["erk"] for erk_ in (given, other)}
    assert len(values) == 2 and all(value.startswith("correction ") for value in values)
    assert Settings(schedule=levels).identity()["schedule"] == [3.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="bind the options of a function"):
        Settings(solver=dpm2, solver_options={"r": 0.5})


def test_the_identity_names_functions_and_what_they_bind():
    """J3: all lambdas and all partials had one identity."""
    module = "erk.method.solvers"
    levels = torch.linspace(3, 0, 5000)
    changed = levels.clone()
    changed[2500] += 1e-4  # torch's text of it is the same
    functions = [
        dpm2, heun, partial(dpm2, r=0.5), partial(dpm2, r=0.25), partial(heun, None, r=0.5),
        partial(dpm2, sigmas=levels), partial(dpm2, sigmas=changed), partial(partial(heun), r=0.5),
    ]  # fmt: skip
    identities = [Settings(solver=one).identity()["solver"] for one in functions]
    named = [f"{module}.dpm2", [], {"r": 0.5}]
    assert identities[:3] == [f"{module}.dpm2", f"{module}.heun", named]
    assert json.loads(json.dumps(identities)) == identities
    assert all(a != b for a, b in itertools.combinations(identities, 2))


class CallableSolver:
    def __call__(self, *arguments):
        raise NotImplementedError

    def method(self, *arguments):
        raise NotImplementedError


def in_main(*arguments):
    raise NotImplementedError


in_main.__module__ = "__main__"


@pytest.mark.parametrize("setting", ["solver", "twin"])
def test_a_function_without_a_name_has_no_identity(setting):
    """J3: another lambda would look the same, and its run would be continued."""

    def local(*arguments):
        raise NotImplementedError

    nameless = [lambda *arguments: None, local, CallableSolver(), CallableSolver().method, in_main]
    for function in [*nameless, *(partial(one, r=0.5) for one in nameless)]:
        with pytest.raises(ValueError, match="cannot be kept or continued: define it by def in a"):
            Settings(**{setting: function}).identity()
    with pytest.raises(ValueError, match="cannot be kept"):
        Settings(solver=partial(dpm2, r=object())).identity()


def test_the_recipe_fills_in_defaults():
    recipe = Settings(solver="deis", steps=6).recipe()
    assert list(recipe) == list(RECIPE)
    assert recipe["solver_options"] == {"order": 4, "mode": "tab"}
    assert (recipe["schedule"], recipe["rho"], recipe["steps"]) == ("time_uniform", 2.0, 6)
    explicit = Settings(schedule=[3, 1, 0.5]).recipe()
    assert (explicit["schedule"], explicit["rho"], explicit["steps"]) == ([3, 1, 0.5], None, 2)
    with pytest.raises(ValueError, match="knows solvers by name"):
        Settings(solver=lambda *arguments: None).recipe()


def test_the_correction_is_one_of_a_union():
    sigmas = Settings(steps=4).sigmas()
    given = auto(Settings(steps=4).solver_for(sigmas, None), sigmas)
    assert Settings(steps=4).correction(sigmas) is None
    assert Settings(steps=4, erk_proj=True, w_stiff=1.0, guidance=2.0).correction(sigmas) is None
    assert Settings(steps=4, w_stiff=1.0).correction(sigmas) == ErkGuid(1.0, 0.5)
    for erk_ in ("auto", given):
        assert Settings(steps=4, erk=erk_).correction(sigmas) == given
    with pytest.raises(ValueError, match="for other noise levels"):
        Settings(steps=4, erk=Correction(given.sigmas, given.directions, given.weights[1:])
                 ).correction(sigmas)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_stay_within_what_the_model_knows(dtype):
    class Model:
        sigma_min, sigma_max = 0.01, 20.0

        def round_sigma(self, sigma):
            return (sigma * 100).round() / 100

    sigmas = Settings(steps=40, dtype=dtype).sigmas(Model())
    assert sigmas.dtype == dtype and sigmas[0] == 20 and sigmas[-1] == 0
    assert len(sigmas) < 41 and (sigmas.diff() < 0).all()  # equal after rounding: one level


def test_a_sweep_over_guidance_may_reach_one():
    """J: there the interval and ERK-Proj do nothing; without a guidance they are a mistake."""
    more = dict(steps=4, guidance_interval=(0.1, 10.0))
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plain = erk.sample(linear(1.0), noise, steps=4)
    for given in (more, {**more, "erk_proj": True, "w_stiff": 1.0}):
        x0 = {
            w: erk.sample(linear(1.0), noise, guide_model=linear(0.5), guidance=w, **given)
            for w in (1, 1.5)
        }
        assert torch.equal(x0[1], plain) and not torch.equal(x0[1.5], plain)
        with pytest.raises(ValueError, match="guidance_interval .* needs model guidance"):
            erk.sample(linear(1.0), noise, **given)
    one, two = (Settings(guidance=w, **more) for w in (1, 2))
    assert dataclasses.replace(two, guidance=1) == one != two
    assert dataclasses.replace(one, guidance=2) == two
    assert one.identity() == Settings(steps=4).identity() != two.identity()
    assert one.recipe() == Settings(steps=4).recipe() and Settings().guidance == 1

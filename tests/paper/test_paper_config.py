"""configs/*.yaml: complete rows, settings that run, and errors that name file, row and key."""

import re

import pytest

import erk
from erk.calibration.problem import count_nfe
from erk.generation.options import DEFAULTS, networks_of, settings_of
from erk.method.sampler import loop
from erk.method.settings import Settings
from erk.models.presets import find_preset
from metrics.protocols import find_protocol
from metrics.references import known_references, reference_names
from scripts.paper.config import (
    Request,
    RowSettings,
    chosen_rows,
    config_names,
    load_config,
    page_name,
)
from scripts.paper.plan import options_of_row, ref_of
from scripts.paper.scales import at_scale, scales

TABLES = [f"table{i}" for i in range(1, 12)]
ROWS = {"table1": 2, "table2": 10, "table3": 8, "table4": 36, "table5": 0, "table6": 2,
        "table7": 2, "table8": 3, "table9": 8, "table10": 7, "table11": 7}  # fmt: skip
SAMPLED = [name for name in TABLES if load_config(name).kind == "sampled"]


def planned(name, scale, as_printed=False):
    """(row, its settings, its guidance) of every row of a table."""
    request = Request(scale=scale, as_printed=as_printed)
    config = at_scale(load_config(name), request)
    for row in config.rows:
        options = options_of_row(config, row, request)
        net, gnet, guidance = networks_of(options)
        yield row, options, settings_of(options, guidance)


def test_every_table_has_its_config():
    assert [name for name in config_names() if name.startswith("table")] == TABLES
    assert {name: len(load_config(name).rows) for name in TABLES} == ROWS
    kinds = {"table1": "toy", "table5": "settings", "table6": "timing", "table7": "timing",
             "table9": "settings"}  # fmt: skip
    for name in TABLES:
        assert load_config(name).kind == kinds.get(name, "sampled")


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("table5", "table9")])
def test_rows_are_complete(name):
    config = load_config(name)
    names = [row.name for row in config.rows]
    assert len(set(names)) == len(names)
    assert config.columns and set(config.best) <= set(config.columns)
    for row in config.rows:
        assert {*row.published} - {"nfe"} == {*config.columns}, row.name
        assert all(type(value) in (int, float) for value in row.published.values())
        assert row.against is None or row.against in names
        assert all(row.settings.get(key) != value for key, value in row.as_printed.items())
        if row.settings.get("w_stiff", 0) > 0 and "erk_proj" not in row.settings:
            assert "w_con" in row.settings and (row.against or name == "table11")


@pytest.mark.parametrize("name", SAMPLED)
def test_references_of_sampled_tables_measure_their_columns(name):
    config = load_config(name)
    for row in config.rows:
        assert find_preset(row.settings["preset"]) and ref_of(config, row) in reference_names()
        measured = find_protocol(known_references()[ref_of(config, row)].protocol).columns
        assert set(config.columns) <= set(measured)


@pytest.mark.parametrize("scale", ["paper", *scales()][:4])
@pytest.mark.parametrize("name", SAMPLED)
def test_settings_are_accepted_and_nfe_is_the_published_one(name, scale):
    for row, options, settings in planned(name, scale):
        assert settings.sigma_min == 0.002 and settings.sigma_max == 80, row.name
        nfe, guide_nfe = count_nfe(settings)
        assert guide_nfe == (0 if settings.guidance == 1 else nfe)
        if settings.adaptive_tau is None and "nfe" in row.published:
            assert nfe == row.published["nfe"], row.name
        elif settings.adaptive_tau is None and settings.solver == "heun" and name != "table4":
            assert nfe == 2 * settings.steps - 1
        if scale != "paper":
            assert options["device"] == "cpu" and options["batch"] == 250
            has_classes = "uncond" not in options["preset"]
            assert options["labels"] == ("balanced" if has_classes else "random")


def test_table4_counted_on_the_digits_network():
    """NFE 6, 8, 10 by solver, counted while a network samples."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(2), model)
    seen = set()
    for row, options, settings in planned("table4", "digits"):
        key = (settings.solver, settings.steps, settings.w_stiff > 0)
        if key in seen or settings.erk:
            continue
        seen.add(key)
        drift = settings.drift(model, labels)
        sigmas = settings.sigmas(model)
        for _ in loop(drift, noise * sigmas[0], sigmas, settings):
            pass
        assert drift.nfe == row.published["nfe"], row.name
        assert options["schedule"] == ("time_uniform" if key[0] == "deis" else "polynomial")
    assert len(seen) == 18


def test_settings_as_printed():
    differing = {}
    for name in SAMPLED:
        config = load_config(name)
        for index, row in enumerate(config.rows):
            by_script = row.settings
            by_text = at_scale(config, Request("paper", as_printed=True)).rows[index].settings
            if by_script != by_text:
                differing[name, index] = {k: (by_script[k], by_text[k]) for k in row.as_printed}
    assert differing == {
        ("table2", 7): {"w_con": (0.3, 0.5)},
        ("table2", 9): {"w_con": (0.1, 0.5)},
        ("table3", 4): {"guidance": (1.2, 1.4)},
        ("table3", 5): {"guidance": (1.2, 1.4)},
        ("table3", 6): {"guidance": (1.55, 2.1)},
        ("table3", 7): {"guidance": (1.55, 2.1)},
    }
    for index, preset in ((4, "edm2-img512-s-guid"), (6, "edm2-img512-s-autog")):
        assert find_preset(preset).guidance == differing["table3", index]["guidance"][1]


def test_options_of_a_row_are_those_of_generate():
    request = Request(num=40, device="cuda", batch=16)
    config = at_scale(load_config("table2"), request)
    options = options_of_row(config, config.rows[1], request)
    assert set(DEFAULTS) < set(options) and set(RowSettings.model_fields) <= set(options)
    assert options["seeds"] == "100000-100039" and options["batch"] == 16
    assert options["device"] == "cuda" and type(options["sigma_max"]) is float


@pytest.mark.parametrize("scale", [*scales()][:3])
def test_shared_rows_are_the_same_row(scale):
    """Tables 8, 10, 11 and Figure 4 repeat rows of 2 and 3: equal options, so computed once."""
    request = Request(scale=scale)

    def options(name, row):
        config = at_scale(load_config(name), request)
        (one,) = (one for one in config.rows if one.name == row)
        return options_of_row(config, one, request)

    assert options("table10", "(B) Heun") == options("table2", "32 steps")
    assert options("table10", "(A) ERK-Guid") == options("table2", "32 steps, w_stiff 1")
    assert options("table11", "ERK-Guid") == options("table2", "32 steps, w_stiff 1.5")
    assert options("table11", "ERK-Guid, auto") == options("table2", "32 steps, auto")
    assert options("figure4", "16 steps, auto") == options("table2", "16 steps, auto")
    for row in ("Autoguidance", "Autoguidance, ERK-Guid", "Autoguidance, auto"):
        assert options("table8", row) == options("table3", f"32 steps, {row}")


@pytest.mark.parametrize(
    ("text", "indices"),
    [(None, range(10)), ("0", [0]), ("0,2-4", [0, 2, 3, 4]), ("9, 1 ,1", [1, 9])],
)
def test_chosen_rows(text, indices):
    config = load_config("table2")
    assert chosen_rows(config, text) == [config.rows[i] for i in indices]


@pytest.mark.parametrize("text", ["10", "", "a", "3-", "4-2", "-1", "0,,1"])
def test_wrong_rows(text):
    with pytest.raises(ValueError, match="rows"):
        chosen_rows(load_config("table2"), text)


def test_page_names():
    config = load_config("table2")
    assert page_name(config, Request()) == "table2"
    assert page_name(config, Request(scale="paper", as_printed=True)) == "table2-paper-as-printed"


GOOD = """title: A title
kind: sampled
paper: What it shows
settings: {steps: 8}
rows:
- name: a
  settings: {w_stiff: 0.5}
  published: {fid: 1.5}
- name: b
  against: a
columns: [fid]
"""


@pytest.fixture
def load(tmp_path):
    def from_text(text):
        path = tmp_path / "some1.yaml"
        path.write_text(text, "utf-8")
        return load_config(path)

    return from_text


def test_a_good_file(load):
    config = load(GOOD)
    assert config.name == "some1" and config.rows[0].settings == {"steps": 8, "w_stiff": 0.5}
    assert config.rows[1].settings == {"steps": 8} and config.rows[1].against == "a"
    assert config.columns == ["fid"] and config.notes == []


def test_a_row_with_a_rule_of_guidance(load):
    """M5: the options of APG and CFG++ are settings of a row too."""
    given = "{guidance_kind: apg, apg_eta: 0.5, apg_threshold: 2.0, guidance: 2.0}"
    settings = load(GOOD.replace("{w_stiff: 0.5}", given)).rows[0].settings
    assert Settings(**settings) == Settings(
        steps=8, guidance_kind="apg", apg_eta=0.5, apg_threshold=2.0, guidance=2.0
    )
    with pytest.raises(ValueError, match="guidance_kind"):
        load(GOOD.replace("w_stiff: 0.5", "guidance_kind: apg+"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("paper: What", "papr: What", ": paper: missing: add it"),
        ("kind: sampled", "kind: sampled\npapr: x", ": papr: unknown key; did you mean paper?"),
        ("kind: sampled", "kind: samples", ": kind: unknown kind 'samples'; did you mean sampled?"),
        ("kind: sampled", "kind: [sampled]", ": kind: unknown kind ['sampled']; did you"),
        ("title: A title", "title: 3", ": title: Input should be a valid string, not 3"),
        ("{w_stiff: 0.5}", "{w_stif: 0.5}",
         ": row 0 'a': settings.w_stif: unknown key; did you mean w_stiff"),
        ("{steps: 8}", "{step: 8}", ": settings.step: unknown key; did you mean steps?"),
        ("{steps: 8}", "eight", ": settings: must be a mapping of"),
        ("- name: b", "- name: a", ": row 'a': name: two rows have this name"),
        ("- name: b", "- nam: b", ": row 1: "),
        ("against: a", "against: c", ": row 'b': against: unknown name 'c'"),
        ("against: a", "against: 1", ": row 1 'b': against: Input should be a valid string"),
        ("against: a", "against: b", ": row 'b': against: a row cannot be compared with itself"),
        ("kind: sampled", "kind: sampled\nnum: many", ": num: Input should be"),
        ("kind: sampled", "kind: sampled\nsmall: {nun: 1}", ": small.nun: unknown key; did"),
        ("kind: sampled", "kind: sampled\nnum: true", ": num: Input should be"),
        ("kind: sampled", "kind: sampled\nbest: {fid: least}", ": best.fid: Input should be 'low'"),
        ("kind: sampled", "kind: sampled\nbest: {fd_dino: low}", ": best: unknown name 'fd_dino'"),
        ("kind: sampled", "kind: sampled\nkind: toy", ":3: not readable YAML (two values for"),
        ("kind: sampled", "kind: sampled\nname: x", ": name: unknown key"),
        ("kind: sampled", "kind: timing", ": options: missing: add it"),
        ("kind: sampled", "kind: grid\noptions: {}", ": options.columns: missing: add it"),
        ("kind: sampled", "kind: toy\noptions: {batch: 1}", ": options: unknown key"),
        ("columns: [fid]", "columns: fid", ": columns: Input should be a valid list"),
        ("columns: [fid]", "columns: [fd]", ": row 'a': published: unknown name 'fid'"),
        ("{fid: 1.5}", "{fid: 1.5, fid: 2}", ":8: not readable YAML (two values for 'fid')"),
        ("{fid: 1.5}", "{fid: [1.5}", ":8: not readable YAML"),
        ("{fid: 1.5}", "{fid: &a [*a]}", "row 0 'a': published.fid"),
        ("{fid: 1.5}", "{fid: 2000-99-99}", ": not readable YAML (month"),
        ("{fid: 1.5}", "{fid: !other 1}", ":8: not readable YAML"),
        ("{fid: 1.5}", "{[fid]: 1.5}", ":8: not readable YAML"),
        ("{fid: 1.5}", "{fid: abc}", ": row 'a': published.fid: 'abc' is not a number"),
        ("{fid: 1.5}", "{fid: .nan}", "row 0 'a': published.fid"),
        ("{fid: 1.5}", f"{{fid: {'9' * 5000}}}", ": not readable YAML"),
        ("title: A title", "title: \x01", ": not readable YAML (special characters"),
        ("{w_stiff: 0.5}", "{w_stiff: high}", "settings.w_stiff: Input should be a valid number"),
        ("{w_stiff: 0.5}", "{w_stiff: }", "settings.w_stiff: Input should be a valid number"),
        ("{w_stiff: 0.5}", "{steps: 8.0}", "settings.steps: Input should be a valid integer"),
        ("{w_stiff: 0.5}", "{solver: huen}", "settings.solver: Input should be 'euler', 'heun'"),
        ("{w_stiff: 0.5}", "{schedule: ed}", "settings.schedule: Input should be 'edm'"),
        ("{w_stiff: 0.5}", "{afs: 1}", "settings.afs: Input should be a valid boolean, not 1"),
        ("{w_stiff: 0.5}", "{solver_option: order=4}", "settings.solver_option: Input should be"),
        ("kind: sampled", "kind: sampled\noptions: {group_bye: [steps]}",
         ": options.group_bye: unknown key; did you mean group_by?"),
        ("kind: sampled", "kind: sampled\noptions: {group_by: [stepz]}", ": options.group_by.0"),
    ],
)  # fmt: skip
def test_errors_name_file_row_and_key(load, tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(GOOD.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'some1.yaml'}:")
    assert "\n" not in str(caught.value)


def test_empty_file_and_unknown_names(load):
    with pytest.raises(ValueError, match="some1.yaml: must be a mapping"):
        load("")
    with pytest.raises(FileNotFoundError, match="no experiment 'tabel2': did you mean table2"):
        load_config("tabel2")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "some1.yaml"
    path.write_bytes(b"title: \xff")
    with pytest.raises(ValueError, match=re.escape(f"{path}: not UTF-8 text")):
        load_config(path)

"""configs/table*.yaml: complete rows, settings that run, and errors that name their line."""

import re

import pytest

import erk
from erk.calibration.problem import count_nfe
from erk.commands import generate
from erk.generation.options import DEFAULTS, networks_of, settings_of
from erk.method.guidance import SCALES as ERK_SCALES
from erk.method.sampler import loop
from erk.method.schedule import SCHEDULES
from erk.method.solvers import SOLVERS
from erk.models.presets import find_preset
from metrics.protocols import find_protocol
from metrics.references import known_references, reference_names
from scripts.paper.config import (
    Config,
    Request,
    Row,
    chosen_rows,
    config_names,
    load_config,
    page_name,
    settings_of_row,
)
from scripts.paper.plan import options_of_row, ref_of
from scripts.paper.schema import FIELDS, KINDS, OPTIONS, SETTINGS, file_type

TABLES = [f"table{i}" for i in range(1, 12)]
ROWS = {"table1": 2, "table2": 10, "table3": 8, "table4": 36, "table5": 0, "table6": 2,
        "table7": 2, "table8": 3, "table9": 8, "table10": 7, "table11": 7}  # fmt: skip
SAMPLED = [name for name in TABLES if load_config(name).kind == "sampled"]


def planned(name, scale, as_printed=False):
    """(row, its settings, its guidance) of every row of a table."""
    config, request = load_config(name), Request(scale=scale, as_printed=as_printed)
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
def test_sampled_tables_say_how_at_both_scales(name):
    config = load_config(name)
    assert config.num == {"paper": 50000, "embedded": 1500}
    assert config.seeds["paper"] == (0 if name == "table4" else 100000)
    for row in config.rows:
        preset = row.settings["preset"]
        assert find_preset(preset) and preset in config.presets
        refs = [ref_of(config, row, scale) for scale in ("paper", "embedded")]
        assert set(refs) <= set(reference_names()) and refs[1] == "digits"
        measured = find_protocol(known_references()[refs[0]].protocol).columns
        assert set(config.columns) <= set(measured)


@pytest.mark.parametrize("scale", ["paper", "embedded"])
@pytest.mark.parametrize("name", SAMPLED)
def test_settings_are_accepted_and_nfe_is_the_published_one(name, scale):
    for row, options, settings in planned(name, scale):
        assert settings.sigma_min == 0.002 and settings.sigma_max == 80, row.name
        nfe, guide_nfe = count_nfe(settings)
        assert guide_nfe == (0 if settings.guidance == 1 else nfe)
        if settings.adaptive_tau is None and "nfe" in row.published:
            assert nfe == row.published["nfe"], row.name
        elif settings.adaptive_tau is None:
            assert nfe == 2 * settings.steps - 1
        if scale == "embedded":
            assert options["device"] == "cpu" and options["batch"] == 250
            assert options["labels"] == ("random" if options["net"] else "balanced")


def test_table4_counted_on_the_digits_network():
    """NFE 6, 8, 10 by solver, counted while a network samples."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(2), model)
    seen = set()
    for row, options, settings in planned("table4", "embedded"):
        key = (settings.solver, settings.steps, settings.w_stiff > 0)
        if key in seen:
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
            by_script = settings_of_row(config, row, "paper", as_printed=False)
            by_text = settings_of_row(config, row, "paper", as_printed=True)
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


def test_embedded_scale_takes_the_stand_ins():
    config = load_config("table4")
    first, last = (settings_of_row(config, config.rows[i], "embedded", False) for i in (0, -1))
    assert first["preset"] == "digits" and first["labels"] == "balanced" and "net" not in first
    assert last["net"].endswith("digits-uncond.safetensors") and "preset" not in last
    assert settings_of_row(config, config.rows[0], "paper", False)["preset"].startswith("edm-image")
    guided = load_config("table3")
    for row in guided.rows:  # a guidance weight belongs to its networks
        assert settings_of_row(guided, row, "embedded", True)["guidance"] == 1.25
    bare = config._replace(presets={})
    with pytest.raises(ValueError, match="nothing that stands for edm-imagenet"):
        settings_of_row(bare, config.rows[0], "embedded", False)


def test_options_are_those_of_generate():
    given = generate.main.make_context("generate.py", []).params
    own = {"outdir", "seeds", "batch", "device", "offline", "grid", "shard", "profile", "animate"}
    measuring = {"evaluate", "real", "protocol", "json_path"}
    assert {k: v for k, v in given.items() if k not in own | measuring} == DEFAULTS
    config = load_config("table2")
    options = options_of_row(config, config.rows[1], Request(num=40, device="cuda", batch=16))
    assert options["seeds"] == "100000-100039" and options["batch"] == 16
    assert options["device"] == "cuda" and type(options["sigma_max"]) is float


def test_shared_rows_are_the_same_row():
    """Tables 8, 10 and 11 repeat rows of 2 and 3: the same options, so they are made once."""
    request = Request()

    def options(name, index):
        config = load_config(name)
        return options_of_row(config, config.rows[index], request)

    assert options("table10", 1) == options("table2", 0)
    assert options("table10", 0) == options("table2", 2)
    assert options("table11", 6) == options("table2", 3)
    assert options("table8", 0) == options("table3", 2)
    assert options("table8", 1) == options("table3", 3)


@pytest.mark.parametrize(
    ("text", "places"),
    [(None, range(10)), ("0", [0]), ("0,2-4", [0, 2, 3, 4]), ("9, 1 ,1", [1, 9])],
)
def test_chosen_rows(text, places):
    config = load_config("table2")
    assert chosen_rows(config, text) == [config.rows[i] for i in places]


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
    assert config.columns == ("fid",) and config.notes == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("paper: What", "papr: What", 3, "unknown key 'papr': did you mean paper?"),
        ("kind: sampled", "kind: samples", 2, "'kind' must be one of sampled, settings"),
        ("title: A title", "title: 3", 1, "'title' must be of type str, not 3"),
        ("paper: What it shows\n", "", 1, "'paper' is missing"),
        (
            "{w_stiff: 0.5}",
            "{w_stif: 0.5}",
            7,
            "unknown key 'w_stif' in 'settings': did you",
        ),
        ("{steps: 8}", "{step: 8}", 4, "unknown key 'step' in 'settings'"),
        ("{steps: 8}", "eight", 4, "a mapping of names to values must stand here"),
        ("- name: b", "- name: a", 9, "the row 'a' is there twice"),
        ("- name: b", "- nam: b", 9, "unknown key 'nam'"),
        ("- name: b\n  against", "- against", 9, "'name' is missing"),
        ("against: a", "against: c", 10, "there is no row 'c'"),
        ("against: a", "against: 1", 10, "'against' must be of type str"),
        ("against: a", "against: b", 10, "the row 'b' cannot stand against itself"),
        ("kind: sampled", "kind: sampled\nnum: {paper: many}", 3, "'num.paper' must be of type"),
        ("kind: sampled", "kind: sampled\nnum: {papr: 1}", 3, "unknown key 'papr' in 'num'"),
        ("kind: sampled", "kind: sampled\nnum: {paper: true}", 3, "must be of type int, not True"),
        ("kind: sampled", "kind: sampled\nbest: {fid: least}", 3, "must be one of low, high"),
        ("kind: sampled", "kind: sampled\nbest: {fd_dino: low}", 3, "'fd_dino' in 'best': known"),
        ("kind: sampled", "kind: sampled\nkind: toy", 3, "'kind' is there twice"),
        ("kind: sampled", "kind: timing", 1, "'options' is missing"),
        ("kind: sampled", "kind: grid\noptions: {}", 3, "'columns' is missing"),
        ("kind: sampled", "kind: toy\noptions: {batch: 1}", 3, "unknown key 'batch' in 'options'"),
        ("columns: [fid]", "columns: fid", 11, "'columns' must be a list"),
        ("columns: [fid]", "columns: [fd]", 8, "unknown key 'fid' in 'published': did you mean fd"),
        ("{fid: 1.5}", "{fid: 1.5, fid: 2}", 8, "'fid' is there twice"),
        ("{fid: 1.5}", "{fid: [1.5}", 8, "not readable YAML"),
        ("{fid: 1.5}", "{fid: &a [*a]}", 8, "'published.fid' must be one value, not a list"),
        ("{fid: 1.5}", "{fid: 2000-99-99}", 8, "'published.fid' is not readable (month"),
        ("{fid: 1.5}", "{fid: !other 1}", 8, "'published.fid' is not readable"),
        ("{fid: 1.5}", "{[fid]: 1.5}", 8, "a name must stand here"),
        ("{fid: 1.5}", "{fid: abc}", 8, "'published.fid' must be a number, not 'abc'"),
        ("{fid: 1.5}", "{fid: .nan}", 8, "'published.fid' must be a number, not nan"),
        ("{fid: 1.5}", "{fidd: 1.5}", 8, "unknown key 'fidd' in 'published': did you mean fid?"),
        ("title: A title", "title: \x01", 1, "not readable YAML (special characters"),
        *(
            ("{w_stiff: 0.5}", f"{{{text}}}", 7, message)
            for text, message in (
                ("w_stiff: high", "'settings.w_stiff' must be a number, not 'high'"),
                ("w_stiff:", "'settings.w_stiff' must be a number, not None"),
                ("w_con: true", "'settings.w_con' must be a number, not True"),
                ("steps: eight", "'settings.steps' must be of type int, not 'eight'"),
                ("steps: 8.0", "'settings.steps' must be of type int, not 8.0"),
                ("solver: huen", "'settings.solver' must be one of euler, heun"),
                ("schedule: ed", "'settings.schedule' must be one of edm, polynomial"),
                ("erk_scale: cubic", "'settings.erk_scale' must be one of quadratic, abs, alpha"),
                ("afs: 1", "'settings.afs' must be of type bool, not 1"),
                ("solver_option: order=4", "'settings.solver_option' must be a list"),
                ("preset: 3", "'settings.preset' must be of type str, not 3"),
            )
        ),
        *(
            ("kind: sampled", f"kind: sampled\noptions: {{{text}}}", 3, message)
            for text, message in (
                ("group_bye: [steps]", "unknown key 'group_bye' in 'options': did you mean"),
                ("group_by: steps", "'options.group_by' must be a list"),
                ("group_by: [stepz]", "'options.group_by' must be one of preset, net"),
                ("refs: {a: 1}", "'options.refs.a' must be of type str, not 1"),
            )
        ),
    ],
)
def test_errors_name_file_and_line(load, tmp_path, old, new, line, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(GOOD.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'some1.yaml'}:{line}: ")


def test_empty_file_and_unknown_names(load):
    with pytest.raises(ValueError, match="some1.yaml:1: a mapping"):
        load("")
    with pytest.raises(FileNotFoundError, match="no experiment 'tabel2': did you mean table2"):
        load_config("tabel2")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "some1.yaml"
    path.write_bytes(b"title: \xff")
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: not UTF-8 text")):
        load_config(path)


def test_names_are_those_of_what_they_name():
    """The schema writes names out, so that reading a file loads no torch."""
    from scripts.paper import estimator, sweeps, timing
    from scripts.paper.reproduce import HANDLERS

    assert set(HANDLERS) == set(KINDS)
    for name, known in (("solver", SOLVERS), ("schedule", SCHEDULES), ("erk_scale", ERK_SCALES)):
        assert SETTINGS[name] == tuple(known)
    assert set(SETTINGS) <= {option.name for option in generate.main.params}
    for kind, made in (("estimator", estimator.FIGURES), ("sweep", sweeps.FIGURES)):
        assert OPTIONS[kind]["show"] == tuple(made)
    assert OPTIONS["timing"]["what"] == tuple(timing.MEASURED)
    assert {*FIELDS} == {*Config._fields} - {"name"} | {"settings"}
    assert set(file_type("toy", [])["rows"][0]) == set(Row._fields)


def test_types_are_those_of_generate():
    """What generate.py reads as a number, a text or a flag is one here, too."""
    read_as = {"integer": int, "float": float, "boolean": bool, "text": str}
    for option in generate.main.params:
        if type(SETTINGS.get(option.name)) is type:
            assert SETTINGS[option.name] is read_as[option.type.name], option.name

"""The recipes of CONTRIBUTING.md run as they are printed, with the commands that they end with."""

import re
import sys
import textwrap
from types import ModuleType

import pytest
import yaml
from click.testing import CliRunner
from documents import ROOT
from pydantic import TypeAdapter

from erk.commands.main import main as erk
from erk.method import fields, solvers
from erk.models import checkpoint
from metrics import measures, protocols

RECIPE = re.compile(r"^## Add a (\w+)\n(.*?)(?=^## )", re.M | re.S)
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.M | re.S)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return a function that gives the blocks and the commands of a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    texts = dict(RECIPE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")))

    def read(name):
        found = [(kind, textwrap.dedent(text)) for kind, text in BLOCK.findall(texts[name])]
        lines = "".join(text.replace("\\\n", "") for kind, text in found if kind == "bash")
        commands = re.findall(r"`erk ([^`]+)`", texts[name]) + re.findall(r"(?m)^erk (.*)", lines)
        return [text for kind, text in found if kind != "bash"], commands

    return read


def run(commands):
    """Run commands of `erk`; return their output."""
    results = [CliRunner().invoke(erk, words.split()) for words in commands]
    for words, result in zip(commands, results, strict=True):
        assert result.exit_code == 0, (words, result.output)
    return "".join(result.output for result in results)


def test_the_recipe_of_a_solver(recipe, monkeypatch):
    (block,), commands = recipe("solver")
    exec(block, solvers.__dict__)
    monkeypatch.setitem(solvers.SOLVERS, "ralston", solvers.__dict__.pop("ralston"))
    monkeypatch.setitem(fields.PUBLISHED_SCHEDULES, "ralston", "edm")
    assert "10 images, NFE 15 per image" in run(commands)


def test_the_recipe_of_a_metric(recipe, monkeypatch):
    (block, protocol), commands = recipe("metric")
    exec(block, measures.__dict__)
    kind = measures.__dict__.pop("MeanDistance")
    monkeypatch.setitem(measures.KINDS, "mean_distance", kind())
    rows = TypeAdapter(dict[str, protocols.ProtocolRow]).validate_python(yaml.safe_load(protocol))
    known = {n: protocols.Protocol(n, row.measures, row.source) for n, row in rows.items()}
    monkeypatch.setattr(protocols, "known_protocols", lambda: known)
    assert "mean_distance" in run(commands)


def test_the_recipe_of_a_network(recipe, monkeypatch):
    (network, file), commands = recipe("network")
    module = ModuleType("erk.models.gaussian")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(network, module.__dict__)
    monkeypatch.setitem(checkpoint.NETWORKS, "GaussianPrecond", module.GaussianPrecond)
    exec(file, {})
    assert "10 images, NFE 63 per image" in run(commands)

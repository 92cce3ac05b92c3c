"""N: checkpoints/README.md states what the files beside it and the results say."""

import json
import re
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
CARD = (ROOT / "checkpoints/README.md").read_text("utf-8")
NETWORKS = sorted(path.stem for path in (ROOT / "checkpoints").glob("*.safetensors"))


def cells(line):
    return [cell.strip("* `") for cell in line.strip("|\n ").split(" | ")]


def table(heading):
    """Return the rows of the first table after a text, by their first cell."""
    lines = CARD[CARD.index(heading) :].split("| --- |", 1)[1].split("\n\n")[0].splitlines()[1:]
    return {cells(line)[0]: cells(line)[1:] for line in lines}


def record(name):
    """Return the rows of a result, as lists of cells."""
    lines = (ROOT / f"results/{name}.md").read_text("utf-8").splitlines()
    return [cells(line) for line in lines if line.startswith("|")]


def test_the_front_matter_is_yaml_with_the_licence():
    front = yaml.safe_load(CARD.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "erk-guid"


def test_every_network_has_a_card():
    assert [*sorted(table("## Networks"))] == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_a_card_states_what_the_files_say(name):
    parameters, size, seed, seen, held_out, command, commit = table("## Networks")[name]
    weights = ROOT / f"checkpoints/{name}.safetensors"
    metadata = json.loads(weights.with_suffix(".json").read_text("utf-8"))
    recipe = metadata["training"]
    assert metadata["licence"] == "Apache-2.0" and int(size) == weights.stat().st_size
    with safe_open(weights, "pt") as file:
        keys = file.keys()
        assert int(parameters) == sum(file.get_tensor(key).numel() for key in keys)
    images = recipe.get("images") or recipe.get("steps", 0) * recipe["batch"]
    assert seen.replace(" ", "") == (str(images) if images else f"{recipe['epochs']}epochs")
    assert int(seed) == recipe["seed"] and re.fullmatch("[0-9a-f]{7}", commit)
    module = re.match(r"python -m (scripts\.train\.\w+)", command)[1]
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    losses = [row["held_out"] for row in recipe.get("curve", [])][-1:]
    kept = [recipe[one] for one in ("held_out_accuracy", "held_out_loss") if one in recipe]
    assert held_out == str([*losses, *kept, "–"][0])


@pytest.mark.parametrize(
    ("name", "result"),
    [("digits", "table2"), ("digits-early", "table2-digits-early"), ("mnist", "table2-mnist")],
)
def test_quality_is_that_of_the_results(name, result):
    (row,) = [row for row in record(result) if row[:2] == ["32 steps", "63"]]
    assert table("## Measured")[name] == row[2:7]


@pytest.mark.parametrize(("heading", "result"), [
    ("5000 seeds, without", "accuracy"), ("Presets with a guide", "guidance")])  # fmt: skip
def test_guidance_is_that_of_the_results(heading, result):
    known = [[row[0], row[1], *row[3:5]] for row in record(result)]
    shown = table(heading)
    assert len(shown) > 2 and all([name, *row] in known for name, row in shown.items())

"""Every script of a table or figure works: all configs in one process, and real .sh calls."""

import json
import os
import shutil
import subprocess

import pytest
from click.testing import CliRunner

from scripts.paper import distance
from scripts.paper.config import (
    ROOT,
    Estimator,
    Request,
    Sampled,
    Sweep,
    TextToImage,
    Toy,
    config_names,
    load_config,
)
from scripts.paper.reproduce import main
from scripts.paper.scales import at_scale

NUM = {Estimator: "2", Sampled: "8", Sweep: "8", Toy: "8"}  # images, seeds or trajectories


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results and cache of all configs: equal rows of two tables are computed once."""
    return tmp_path_factory.mktemp("scripts")


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_reproduced(name, folder, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(folder / "cache"))
    monkeypatch.setenv("ERK_OFFLINE", "1")
    monkeypatch.setattr(distance, "EVALUATIONS", 16)  # else half of the time
    config, results = at_scale(load_config(name), Request()), folder / "results"
    arguments = [name, "--num", NUM.get(type(config), "4"), "--results", str(results)]
    if isinstance(config, Toy) and name != "table1":
        arguments.append("--dry-run")  # minutes; tests/paper/test_figures.py runs it with few steps
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    if "--dry-run" in arguments:
        return
    page = json.loads((results / f"{name}.json").read_text("utf-8"))
    files = [f"{name}.{end}" for end in ("csv", "md", "tex", "html")]
    for file in [*files, "index.html", *page["files"]]:
        assert (results / file).stat().st_size > 0 and f"{results / file}\n" in result.stdout
    if isinstance(config, Sampled | Sweep):
        assert len(page["rows"]) == len(config.rows)
        assert all(row["measured"] and row["images"] == 8 for row in page["rows"])
        assert all(row["ours"]["fd"] > 0 for row in page["rows"])
    elif not isinstance(config, TextToImage):
        assert page["rows"] and page["made_by"]


@pytest.mark.parametrize("name", config_names())
def test_every_script_calls_its_config(name):
    path = ROOT / "scripts" / f"{name}.sh"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert os.access(path, os.X_OK) and len(lines) == 1
    assert f'reproduce.sh" {name} "$@"' in lines[0]
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.parametrize("name", ["docs", "reproduce_all", "setup", "test"])
def test_help_installs_nothing(name, tmp_path):
    """b13"""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / f"{name}.sh", tmp_path / "scripts")
    command = ["bash", tmp_path / "scripts" / f"{name}.sh", "--help"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"bash scripts/{name}.sh" in process.stdout and "set -e" not in process.stdout
    assert os.listdir(tmp_path) == ["scripts"]


@pytest.mark.parametrize("name", ["table9", pytest.param("table2", marks=pytest.mark.slow)])
def test_a_script_runs_from_any_folder(name, tmp_path):
    rows = ["--rows", "10", "--num", "8", "--processes", "1"] if name == "table2" else []
    script = ["bash", str(ROOT / "scripts" / f"{name}.sh"), *rows]
    env = os.environ | {"ERK_CACHE": str(tmp_path / "cache"), "ERK_OFFLINE": "1"}
    process = subprocess.run(
        [*script, "--results", str(tmp_path / "results")],
        env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "results" / f"{name}.md").stat().st_size > 0


def test_all_are_reproduced_with_the_options_of_one(tmp_path):
    """scripts/reproduce_all.sh with a substitute for reproduce.sh."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "reproduce_all.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "reproduce.sh").write_text('echo "$@"\nexit 3\n')
    process = subprocess.run(
        ["bash", "scripts/reproduce_all.sh", "--scale", "digits,mnist"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 3 and process.stdout == "all --scale digits,mnist\n"

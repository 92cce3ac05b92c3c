"""Every script of a table or figure runs, at a tiny size, as a user would call it."""

import json
import os
import shutil
import subprocess

import pytest

from scripts.paper.config import ROOT, config_names, load_config

NUM = {"estimator": "4"}  # by kind: seeds, each of which costs 64 Jacobian columns a step


@pytest.mark.parametrize("name", config_names())
def test_script(name, tmp_path):
    config, results = load_config(name), tmp_path / "results"
    script = ["bash", str(ROOT / "scripts" / f"{name}.sh"), "--num", NUM.get(config.kind, "64")]
    env = os.environ | {"ERK_CACHE": str(tmp_path / "cache"), "ERK_OFFLINE": "1"}
    done = subprocess.run(
        [*script, "--processes", "1", "--results", str(results)],
        env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((results / f"{name}.json").read_text("utf-8"))
    written = [f"{name}.{end}" for end in ("csv", "md", "tex", "html")]
    for file in [*written, "index.html", *told["files"]]:
        assert (results / file).stat().st_size > 0 and f"{results / file}\n" in done.stdout
    if config.kind in ("sampled", "sweep"):
        assert len(told["rows"]) == len(config.rows)
        assert all(row["measured"] and row["images"] == 64 for row in told["rows"])
        assert all(row["ours"]["fd"] > 0 for row in told["rows"])
    elif config.kind != "text-to-image":
        assert told["rows"] and told["made_by"]


def test_all_are_made_and_what_fails_is_named(tmp_path):
    """scripts/reproduce_all.sh with a stand-in for reproduce.sh that fails at one table."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "reproduce_all.sh", tmp_path / "scripts")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    stand_in = 'echo "$@"\n[ "$1" != table3 ]\n'
    (tmp_path / "scripts" / "reproduce.sh").write_text(stand_in)
    done = subprocess.run(
        ["bash", "scripts/reproduce_all.sh", "--num", "5"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == "not made: table3\n" and done.returncode == 1
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} --num 5" for name in config_names())

"""scripts.paper.reproduce: a row is measured once, and every way to run it gives the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from erk.commands import generate
from erk.generation.options import JobPlan
from scripts.paper import reproduce
from scripts.paper import rows as paper_rows
from scripts.paper.config import Experiment, Request, load_config
from scripts.paper.scales import COLUMNS, at_scale

ROOT = Path(__file__).parents[2]
FAST = ("table2", "--rows", "10-11", "--num", "24", "--batch", "8")  # 8 steps, 3 batches
ENDS = ("csv", "md", "tex", "html", "json")


def page(folder, name="table2"):
    """The content of a page's .json file."""
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def row_files(folder):
    return {path.name: path.read_text("utf-8") for path in (folder / "rows").iterdir()}


def numbers(folder):
    """The row files without timing and provenance."""
    rows = {name: json.loads(text) for name, text in row_files(folder).items()}
    return {
        name: {key: value for key, value in row.items() if key not in ("made_by", "spent")}
        for name, row in rows.items()
    }


@pytest.mark.parametrize("name", ["table2", "table4"])
def test_a_table_of_two_rows(run, tmp_path, name):
    """Files, columns and provenance; the numbers are those of generate.py --evaluate."""
    printed = run(name, "--num", "20", "--rows", "0-1")
    folder = tmp_path / "results"
    pages = {"index.html", *(f"{name}.{end}" for end in ENDS)}
    assert {path.name for path in folder.iterdir()} == {"rows", *pages}
    content, config = page(folder, name), at_scale(load_config(name), Request())
    assert content["scale"] == "digits" and " on digits: " in content["title"]
    assert len(content["rows"]) == len(config.rows) and len(row_files(folder)) == 2
    assert [row["measured"] for row in content["rows"]][:3] == [True, True, False]
    plain, guided = content["rows"][:2]
    assert guided["against"] == plain["name"] == config.rows[0].name
    assert plain["published"] == config.rows[0].published and not plain["minus_published"]
    assert plain["seeds"] == guided["seeds"] == "100000-100019" and guided["images"] == 20
    assert {*guided["ours"]} == {*guided["se"]} == {*COLUMNS}
    difference = guided["paired"]["fd"]["value"]
    assert difference == pytest.approx(guided["ours"]["fd"] - plain["ours"]["fd"]) != 0
    assert guided["commit"] and guided["command"] and guided["versions"]["torch"]
    assert guided["seconds"] > 0 and plain["nfe"] == (63 if name == "table2" else 6)
    assert "NOT MEASURED YET" in printed and printed.count("wrote ") == 6
    options = [f"--{key}={value}" for key, value in config.rows[1].settings.items()
               if key not in ("preset", "labels", "afs", "denoise_to_zero")]  # fmt: skip
    target = tmp_path / "generated.json"
    more = ["--preset=digits", "--labels=balanced", "--seeds=100000-100019", "--batch=20",
            "--device=cpu", "--evaluate=digits", f"--json={target}"]  # fmt: skip
    assert CliRunner().invoke(generate.main, [*options, *more]).exit_code == 0
    same = json.loads(target.read_text("utf-8"))
    measured = {key: value for key, value in guided["ours"].items() if key != "distance"}
    assert {key: same[key] for key in measured} == measured and guided["ours"]["distance"] > 0


def test_rows_are_made_once_and_networks_loaded_once(run, tmp_path, monkeypatch):
    opened, computed = [], []
    load, make = JobPlan.load, paper_rows._measure
    monkeypatch.setattr(JobPlan, "load", lambda plan: opened.append(plan) or load(plan))
    monkeypatch.setattr(paper_rows, "_measure", lambda *a: computed.append(a) or make(*a))
    run("table2", "--rows", "10", "--num", "16")
    run("table2", "--rows", "8-11", "--num", "16")
    assert len(opened) == 2 and len(computed) == 4  # rows 8, 9 and 11 share their networks
    before = row_files(tmp_path / "results")
    assert len(before) == 4
    run("table2", "--rows", "8-11", "--num", "16")
    assert len(computed) == 4 and row_files(tmp_path / "results") == before
    rows = page(tmp_path / "results")["rows"]
    assert [row["measured"] for row in rows] == [False] * 8 + [True] * 4 + [False] * 6
    assert rows[10]["settings"]["w_stiff"] == 0 and rows[11]["settings"]["w_con"] == 0.1
    run("table2", "--rows", "11", "--num", "16", "--as-printed")
    assert len(computed) == 5  # other settings, another row, another file
    content = page(tmp_path / "results", "table2-as-printed")
    assert content["rows"][11]["settings"]["w_con"] == 0.5 and "as printed" in content["title"]
    assert content["rows"][10]["measured"]  # the text and the script agree on this one


def test_a_fresh_clone_takes_the_rows_of_its_pages(run, tmp_path, monkeypatch):
    """results/rows is not committed; the pages are, and hold the rows with their keys."""
    run("table2", "--rows", "10-11", "--num", "24")
    before = page(tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / "rows")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(paper_rows, "_measure", None)
    run("table2", "--rows", "10-11", "--num", "24")
    assert page(tmp_path / "results") == before
    assert not (tmp_path / "results" / "rows").exists()


def test_shards_are_put_together(run, tmp_path):
    run(*FAST)
    for shard in ("0/2", "1/2"):
        output = run(*FAST, "--shard", shard, "--cache", tmp_path / "shards", results="other")
        assert "run without --shard" in output
        assert not (tmp_path / "other").exists()
    run(*FAST, "--cache", tmp_path / "shards", results="other")
    assert numbers(tmp_path / "other") == numbers(tmp_path / "results")
    rows = page(tmp_path / "other")["rows"][10:12]
    assert [row["seconds"] for row in rows] == [None, None]  # nothing was left to sample


def test_a_killed_run_goes_on(run, tmp_path):
    """kill -9 in the second row: the first stays as it is, the second is finished, bytes equal."""
    job = ("table2", "--rows", "0-1", "--num", "64", "--batch", "16")
    run(*job, "--cache", tmp_path / "own", results="complete")
    folder, store = tmp_path / "results", tmp_path / "store"
    command = [sys.executable, "-m", "scripts.paper.reproduce", *job]
    with subprocess.Popen(
        [*command, "--cache", store, "--results", folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while len(list(store.rglob("*.safetensors"))) < 5:  # 4 of the first row, 1 of the second
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    first = row_files(folder)
    assert len(first) == 1 and not (folder / "table2.tex").read_text().count("nan")
    assert [row["measured"] for row in page(folder)["rows"]][:2] == [True, False]
    run(*job, "--cache", store)
    assert numbers(folder) == numbers(tmp_path / "complete")
    after = row_files(folder)
    (name,) = first
    assert after.pop(name) == first[name]  # not computed again
    (second,) = after.values()
    assert json.loads(second)["spent"]["images"] < 64
    assert [row["measured"] for row in page(folder)["rows"]][:2] == [True, True]


def test_two_processes_through_torchrun(run, tmp_path):
    run(*FAST)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.paper.reproduce", *FAST, "--processes", "2"]
    done = subprocess.run(
        [*command, "--cache", tmp_path / "other", "--results", tmp_path / "two"],
        env=env, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "two") == numbers(tmp_path / "results")
    assert {row["processes"] for row in page(tmp_path / "two")["rows"][10:12]} == {2}
    assert done.stdout.count("wrote ") == 6  # one process writes


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to end processes")
def test_processes_end_with_a_killed_launcher(tmp_path):
    """kill -9 of torchrun leaves it no time to end its processes."""
    command = [sys.executable, "-m", "scripts.paper.reproduce", *FAST, "--num", "999"]
    command += ["--processes", "2"]
    with subprocess.Popen(
        [*command, "--cache", tmp_path / "store", "--results", tmp_path / "results"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(list((tmp_path / "store").rglob("*.safetensors"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        workers = [Path("/proc") / child for child in children.read_text().split()]
        process.send_signal(signal.SIGKILL)
    assert len(workers) >= 2
    until = time.monotonic() + 30
    while any(map(_lives, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_lives, workers))


def _lives(process):
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_dry_run_loads_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_rows, "load_evaluator", None)
    monkeypatch.setattr(JobPlan, "load", None)
    output = run("table3", "--dry-run")
    assert "31 + 31" in output and "digits-autog" in output and "0 of 0 files" in output
    output = run("table3", "--dry-run", "--scale", "paper", "--rows", "4")
    assert "50000" in output and "7 of 7 files to download are not in" in output
    assert "edm2-img512-xs-uncond-2147483-0.025.pkl (about 249 MB)" in output
    assert "needs no network" in run("table9", "--dry-run")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        ("3/8", {}, (3, 8)),
        ("0/1", {}, None),
        (None, {}, None),
        (None, {"ID": "2", "COUNT": "4"}, (2, 4)),
        (None, {"ID": "4", "COUNT": "4", "MIN": "1"}, (3, 4)),
        ("0/2", {"ID": "2", "COUNT": "4"}, (0, 2)),
        (None, {"ID": "0", "COUNT": "1"}, None),
        (None, {"ID": "3", "COUNT": "2", "MIN": "1", "MAX": "3"}, (1, 2)),
    ],
)
def test_shards(monkeypatch, text, env, expected):
    for name in ("ID", "COUNT", "MIN", "MAX"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert reproduce.shard_of(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel2"], "did you mean table2"),
        (["table2", "--shard", "2/2"], "--shard must be I/N"),
        (["table2", "--rows", "18"], "table2 has the rows 0 to 17"),
        (["table2", "--rows", "0-99999999999"], "table2 has the rows 0 to 17"),
        (["table2", "--scale", "mnits"], "unknown name 'mnits': did you mean mnist?"),
        (["table2", "--budget", "-1"], "'--budget'"),
        (["table2", "table3", "--rows", "1"], "--rows chooses rows of one table on one scale"),
        (["table2", "--num", "1"], "--num must be at least 2"),
        (["table2", "--processes", "0"], "--processes must be a number"),
        (["table2", "--real", "nowhere"], "nowhere does not exist"),
        (["table1", "--rows", "0"], "computed together: leave out --rows"),
        (["figure8", "--shard", "0/2"], "has no shards: leave out --shard"),
        (["figure2", "--num", "4"], "figure2 needs --num 8 or more"),
    ],
)
def test_bad_input(run, tmp_path, arguments, message):
    output = run(*arguments, code=2)
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "results").exists()


def test_bad_input_is_one_sentence_through_the_scripts():
    """Before any process is started: the launcher would add its own report."""
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "table2.sh"), "--rows", "99"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "Error: table2 has the rows 0 to 17, not '99'\n"


def test_a_trial_stays_out_of_the_results(monkeypatch):
    """--num and --rows write to results/trial, and finished rows are shared."""
    seen = []
    monkeypatch.setattr(reproduce, "_measure", lambda some, *_: seen.append(some[0].request) or [])
    for arguments in ([], ["--num", "9"], ["--rows", "0"], ["--results", "r", "--num", "9"]):
        assert CliRunner().invoke(reproduce.main, ["table2", *arguments]).exit_code == 0
    complete = ROOT / "results"
    assert [str(r.results) for r in seen[:3]] == [str(complete), *[str(complete / "trial")] * 2]
    assert [r.rows_folder for r in seen[:3]] == [complete / "rows"] * 3
    assert seen[3].rows_folder == Path("r/rows")


def test_as_printed_is_said_where_it_changes_nothing(run, monkeypatch):
    seen = []
    monkeypatch.setattr(reproduce, "_measure", lambda some, *_: seen.append(some[0].request) or [])
    assert "changes nothing" in run("table3", "--as-printed")  # guidance is 1.25 there
    assert "changes nothing" not in run("table2", "--as-printed")
    assert [request.as_printed for request in seen] == [False, True]


def test_processes(monkeypatch):
    table, settings = ([Experiment(load_config(name), Request())] for name in ("table2", "table9"))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert reproduce.process_count("auto", table) == reproduce.MAX_PROCESSES
    assert reproduce.process_count("auto", [*settings]) == 1
    assert reproduce.process_count("3", table) == 3

"""Every benchmark runs at a tiny size, and scripts/bench/gpu.py calls them with known options."""

import importlib
import json
import os
import re
import shutil
import tarfile
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from metrics.report import number
from scripts.bench import checkouts, gpu, metadata
from scripts.bench.paired import ROOT, in_turns, summary
from scripts.bench.pieces import run_piece
from scripts.bench.traffic import Traffic

NETWORK = ["--size", "tiny", "--batch", "1"]
TINY = {
    "evaluation": ["--fid-only", "--images", "10"],
    "frechet": ["--dim", "8"],
    "load": ["--images", "8", "--seeds", "40", "--zip", "100"],
    "metadata": ["--format", "png", "--images", "4"],
    "scaling": [*NETWORK, "--steps", "2", "--ranks", "1", "--further", "1"],
    "writing": ["--size", "32", "--images", "8", "--sampling", "0.001"],
}
"""Options of those that the trial of scripts/bench/gpu.py below leaves out, or runs otherwise."""
SLOW = {"evaluation", "load", "metadata", "scaling"}  # ten seconds


def command(name):
    return importlib.import_module(f"scripts.bench.{name}").main


def invoke(name, options):
    """Run a benchmark; restore what it sets for the process and its subprocesses."""
    before, deterministic = dict(os.environ), torch.backends.cudnn.deterministic
    try:
        return CliRunner().invoke(command(name), options)
    finally:
        torch.backends.cudnn.deterministic = deterministic
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.filterwarnings("ignore:This DataLoader")  # torch-fidelity's
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TINY]
)
def test_it_runs(name, tmp_path):
    if name == "metadata" and shutil.which("strace") is None:
        pytest.skip("needs strace")
    result = invoke(name, [*TINY[name], "--rounds", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, (result.output, result.exception)
    check_record(tmp_path, name)


def check_record(folder, name):
    record = json.loads((folder / f"{name}.json").read_text("utf-8"))
    assert record["command"] and record["versions"] and record["rows"]
    assert (folder / f"{name}.md").read_text("utf-8").count("\n| ") == len(record["rows"]) + 2


def in_this_process(words, limit, preload):
    """Run a piece as scripts.bench.pieces does, without the start of a process."""
    module, *options = words
    result = invoke(module.rpartition(".")[2], options)
    assert result.exit_code == 0, (result.output, result.exception)
    return {"state": "done", "seconds": 1.0, "command": " ".join(words), "output": []}


def test_the_trial_of_the_plan_for_a_gpu(tmp_path, monkeypatch):
    """Every piece runs here, without processes; the page of results has their figures."""
    monkeypatch.setattr(gpu, "run_piece", in_this_process)
    elsewhere = {"pytest", "doctor", "evaluation"}  # tests, and the slow test below
    names = [name for name, piece in gpu.PIECES.items() if piece.module not in elsewhere]
    out = tmp_path / "cuda"
    options = ["--tiny", "--device", "cpu", "--out", str(out)]
    done = CliRunner().invoke(gpu.main, [*options, *names])
    assert done.exit_code == 0, done.output
    for name in names:
        check_record(out / name, gpu.PIECES[name].module)
    lines = (out / "README.md").read_text("utf-8").splitlines()
    assert lines[0] == "Device: cpu. Written by `python -m scripts.bench.gpu`."
    rows = {cells[1]: cells[2:-1] for cells in (re.split(r" *\| *", line) for line in lines[4:])}
    assert [*rows] == [*gpu.PIECES]
    assert all(rows[name][0] == "done" for name in names) and rows["doctor"][0] == "not run"
    (ours,) = [row for row in gpu.read_rows(out, "neighbours") if "seconds" in row
               and row["code"] == "ours"]  # fmt: skip
    assert rows["neighbours"][2] == number(ours["seconds"])
    assert rows["sampling"][2] == "not measured"  # without the peer
    assert rows["neighbours"][3] == "50 000 x 50 000 in at most 5 s"


def test_every_benchmark_is_tried():
    files = {path.stem for path in (ROOT / "scripts/bench").glob("*.py")}
    others = {"paired", "networks", "checkouts", "photographs", "gpu", "pieces", "traffic"}
    assert files - others == {*TINY, *(piece.module for piece in gpu.PIECES.values())} - {
        "pytest", "doctor"
    }  # fmt: skip


def test_ratios_are_medians_over_rounds():
    times = iter([(0, 1, 1), (0, 2, 4), (0, 2, 1), (0, 10, 2), (0, 1, 1), (0, 3, 5)])
    runs = in_turns({"ours": None, "peer": None}, 3, timed=lambda code: next(times))
    assert summary(runs)["peer"]["times ours"] == 3 and summary(runs)["peer"]["CPU times ours"] == 4


def test_a_summary_of_strace():
    """With and without errors; the line of totals is no call."""
    summary = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600          12        50           fsync
 40.00    0.000400           4       100        20 openat
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           6       150        20 total
"""
    assert metadata.calls_of(summary) == {"fsync": 50, "openat": 100}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_bytes_that_operations_move(mode):
    """Views move nothing, an output that is given counts once."""
    x, weight = torch.ones(4, 8), torch.ones(2, 8)
    with mode(), Traffic() as traffic:
        y = torch.nn.functional.linear(x, weight)
        torch.mul(x.reshape(8, 4).transpose(0, 1), 2.0, out=torch.empty(4, 8))
    assert y.shape == (4, 2)
    assert traffic.bytes == {"products": 4 * (32 + 16 + 8), "others": 4 * (32 + 32)}
    assert traffic.operations == {"products": 1, "others": 1}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_an_earlier_commit_is_imported_beside_the_current_package():
    from erk.models.edm2 import Precond

    earlier = checkouts.earlier_precond("HEAD")
    assert earlier is not Precond and earlier.__name__ == "Precond"
    assert importlib.import_module("erk.models.edm2").Precond is Precond


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    result = invoke("network", ["--size", "tiny", "--peer", str(tmp_path), "--out", str(tmp_path)])
    assert result.exit_code == 2 and "is not a checkout of NVlabs/edm2" in result.output


@pytest.mark.parametrize("peer", [None, ROOT])
@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", gpu.PIECES)
def test_the_plan_for_a_gpu_has_known_options(name, tiny, peer, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = "cpu" if tiny else "cuda"
    module, *options = gpu.command_of(name, tiny, device, peer, tmp_path)
    if module.startswith("scripts.bench."):
        takes_peer = not tiny and peer is not None and "PEER" in gpu.PIECES[name].options
        assert ("--peer" in options) == takes_peer
        command(module.rpartition(".")[2]).make_context(name, options)  # UsageError if unknown
    else:
        assert module in ("pytest", "erk")


def piece(folder, code, limit=60):
    """Run a module of this code as a piece."""
    (folder / "tried.py").write_text(code)
    return run_piece(["tried"], limit)


def test_a_piece_that_hangs_is_ended_with_its_processes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    started, late = tmp_path / "started", tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    code = f"""import subprocess, sys
open({str(started)!r}, "w")
subprocess.run([sys.executable, "-c", {child!r}])"""
    failed = piece(tmp_path, "print('why'); raise SystemExit(3)")
    assert failed["state"] == "failed with status 3" and failed["output"] == ["why"]
    assert piece(tmp_path, code, limit=2)["state"] == "ended after 2 s"
    time.sleep(3)
    assert started.exists() and not late.exists()


def test_pieces_are_packed_and_resumed(tmp_path, monkeypatch):
    """The budget leaves out what may not fit; --resume goes on with it."""
    rows = [{"code": "ERK-Guid", "share in guidance": 0.25}]
    calls = []

    def run_piece(words, limit, preload):
        name = Path(words[-1]).name  # of --out
        calls.append(name)
        (tmp_path / "out" / name).mkdir(parents=True)
        record = tmp_path / "out" / name / "guidance.json"
        record.write_text(json.dumps({"rows": rows}))
        return {"state": "done", "seconds": 1.0, "command": "", "output": []}

    monkeypatch.setattr(gpu, "run_piece", run_piece)
    monkeypatch.setenv("OUT", str(tmp_path / "packed"))
    options = ["--tiny", "--device", "cpu", "--out", str(tmp_path / "out"), "guidance", "xxl"]
    done = CliRunner().invoke(gpu.main, [*options, "--budget", "200"])
    assert done.exit_code == 0 and calls == ["guidance"] and "xxl: left for" in done.output
    assert CliRunner().invoke(gpu.main, [*options, "--resume"]).exit_code == 0
    assert calls == ["guidance", "xxl"]
    with tarfile.open(tmp_path / "packed" / "records.tar") as archive:
        assert {"README.md", "pieces.json", "xxl/guidance.json"} < {*archive.getnames()}
        summary = archive.extractfile("README.md").read().decode()
    assert "| guidance | done | 1 | 0.25 | ERK-Guid: at most 0.15 %" in summary
    assert "| network | not run |" in summary


def test_the_plan_refuses_in_one_sentence():
    trial = ["--tiny", "--device", "cpu"]
    for options, message in [([*trial, "netwrk"], "no piece 'netwrk'"), (trial[1:], "--tiny")]:
        done = CliRunner().invoke(gpu.main, options)
        assert done.exit_code == 2 and message in done.output
    if not torch.cuda.is_available():
        assert "no device 'cuda'" in CliRunner().invoke(gpu.main, []).output


@pytest.mark.slow
def test_every_piece_runs_at_a_tiny_size(tmp_path):
    """One piece after the other, each in its own process, in under a minute of two idle cores."""
    out = tmp_path / "out"
    done = CliRunner().invoke(gpu.main, ["--tiny", "--device", "cpu", "--out", str(out)])
    assert done.exit_code == 0, done.output
    states = json.loads((out / "pieces.json").read_text("utf-8"))
    assert {one["state"] for one in states.values()} == {"done"} and set(states) == set(gpu.PIECES)
    for name, one in gpu.PIECES.items():
        assert one.module in ("pytest", "doctor") or gpu.read_rows(out, name)

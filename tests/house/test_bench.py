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

from erk.runtime import precision
from metrics.report import number
from scripts.bench import checkouts, gpu, metadata, sampling
from scripts.bench.counting import Traffic
from scripts.bench.paired import FIVE, ROOT, in_turns, summary
from scripts.bench.pieces import run_piece

NETWORK = ["--size", "tiny", "--batch", "1"]
TINY = {
    "evaluation": ["--fid-only", "--images", "10"],
    "frechet": ["--dim", "8"],
    "load": ["--images", "8", "--seeds", "40", "--zip", "100"],
    "metadata": ["--format", "png", "--images", "4"],
    "scaling": [*NETWORK, "--steps", "2", "--ranks", "1", "--further", "1"],
    "traffic": ["--size", "tiny", "--batch", "1"],
    "writing": ["--size", "32", "--images", "8", "--sampling", "0.001"],
}
"""Options of those that the trial of scripts/bench/gpu.py below leaves out, or runs otherwise."""
SLOW = {"evaluation", "load", "metadata", "scaling", "traffic"}  # ten seconds


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
    top = [row for row in gpu.read_rows(out, "network") if "calls" in row]
    assert len(top) == 3 and top[0]["seconds"] >= top[2]["seconds"] > 0
    assert rows["sampling"][2] == "–" and rows["sampling"][3] == "not measured"  # no peer
    assert rows["neighbours"][4] == "50 000 x 50 000 in at most 5 s"


PEER_OF = {"sampling": (3.1, 2.9), "half_vae": (3.4, 3.2), "xxl": (1.9, 1.7)}
FIGURES = {
    "network": [[{"code": "ours", "size": "s", "of matmul rate": 1.0},
                 {"code": "ours, fp16, compiled", "size": "xs", "of matmul rate": 1.0},
                 {"code": "ours, fp16, compiled", "size": "s", "of matmul rate": x}]
                for x in (0.56, 0.54)],
    "neighbours": [[{"code": "ours", "seconds": x}] for x in (4.0, 6.0)],
    "guidance": [[{"code": "Heun"}, {"code": "ERK-Guid", "share in guidance": x}]
                 for x in (0.0014, 0.0016)],
    **{name: [[{"code": "ours", "times ours": 1.0}, {"code": "peer", "times ours": x}]
              for x in both] for name, both in PEER_OF.items()},
    "evaluation": [[{"code": "ours", "metrics": "fid,is", "images/s": 1000.0},
                    {"code": "ours", "metrics": FIVE, "images/s": x}] for x in (140.0, 138.0)],
    "cudnn": [[{"code": "ours, fp16, compiled", "seconds": 2.0},
               {"code": "ours, fp16, compiled, cudnn.benchmark", "seconds": x}]
              for x in (1.8, 1.96)],
}  # fmt: skip
"""Rows of each piece with a target: one that hits it, one that misses it."""


def test_the_summary_judges_every_target(tmp_path):
    """Also whether a target was not measured; a trial on a CPU hits and misses none."""
    wanted = {"hit": 0, "missed": 1, "not measured": None, "trial": 0}
    for verdict, which in wanted.items():
        out = tmp_path / verdict
        for name, rows in FIGURES.items():
            (out / name).mkdir(parents=True)
            record = {"rows": [{"code": "peer not run"}] if which is None else rows[which]}
            path = out / name / f"{gpu.PIECES[name].module}.json"
            path.write_text(json.dumps(record), "utf-8")
        page = gpu.summary_of(out, {}, "cpu" if verdict == "trial" else "cuda")
        rows = [re.split(r" *\| *", line)[1:-1] for line in page.splitlines()[4:]]
        with_target = {name for name, piece in gpu.PIECES.items() if piece.target}
        verdicts = {row[0]: row[4] for row in rows if row[-1] != "–"}
        assert verdicts == dict.fromkeys(with_target, verdict)
    assert with_target == {*FIGURES}
    assert any(row[3] == "0.9" for row in rows if row[0] == "cudnn")  # 1.8 s / 2 s


def test_peers_run_with_their_own_switches(monkeypatch):
    """torch-fidelity sets none: PyTorch's default is TF32 in convolutions, any of cuDNN's sums."""
    from scripts.bench import evaluation

    seen = []

    def calculate_metrics(**options):
        seen.append((allowed(), torch.backends.cudnn.deterministic))

    def allowed():
        return [on == getattr(owner, name) for _, owner, name, _, on in precision._switches()]

    default = [operation in precision.RELEASED for operation, *_ in precision._switches()]
    monkeypatch.setattr(evaluation.torch_fidelity, "calculate_metrics", calculate_metrics)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with precision.tf32_only(precision.NONE):
        evaluation.theirs(Path("none"), "cpu")
        assert seen == [(default, False)] and not any(allowed())
    assert torch.backends.cudnn.deterministic


@pytest.mark.slow
@pytest.mark.parametrize("name", ["network", "decoding"])
def test_compiled_networks_are_timed(name, tmp_path):
    options = {"network": [*NETWORK, "--precision", "fp32"], "decoding": ["--tiny"]}[name]
    done = invoke(name, [*options, "--compile", "--rounds", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, (done.output, done.exception)
    rows = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["rows"]
    compiled = [row for row in rows if "compiled" in row["code"]]
    assert len(compiled) == {"network": 1, "decoding": 3}[name]
    assert all(row["seconds"] > 0 for row in compiled)


def test_images_are_timed_from_the_times_of_their_files():
    """The first batch does not count, nor what follows the last one."""

    def make(n, folder, each):
        for i in range(n):
            path = folder / f"{i}.png"
            path.touch()
            os.utime(path, (0, 1000 + 10 * i if i < 2 else 1020 + 3 * i))
            if i % 2:
                each()

    _, seconds, cpu = sampling.per_image(make, 2, further=2)
    assert seconds == (1035 - 1010) / 4 and 0 < cpu < 1
    _, _, cpu = sampling.per_image(lambda *args: make(*args[:2], lambda: None), 2)
    assert cpu == 0  # of other processes


def test_every_benchmark_is_tried():
    files = {path.stem for path in (ROOT / "scripts/bench").glob("*.py")}
    others = {"paired", "networks", "checkouts", "photographs", "gpu", "pieces", "counting"}
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

    earlier = checkouts.earlier_class("HEAD", "erk.models.edm2", "Precond")
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
    assert "| guidance | done | 1 | 0.25 | trial | ERK-Guid: at most 0.15 %" in summary
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

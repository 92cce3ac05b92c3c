"""Every benchmark runs at a tiny size, and scripts/bench/gpu.sh calls them with known options."""

import importlib
import json
import os
import subprocess

import pytest
import torch
from click.testing import CliRunner

from scripts.bench import checkouts
from scripts.bench.paired import ROOT, in_turns, summary

NETWORK = ["--size", "tiny", "--batch", "1"]
TINY = {
    "decoding": ["--tiny"],
    "evaluation": ["--fid-only", "--images", "10"],
    "evaluator": ["--extractor", "digits", "--images", "3", "--sets", "60"],
    "frechet": ["--dim", "8"],
    "guidance": [*NETWORK, "--steps", "2"],
    "load": ["--images", "8", "--seeds", "40", "--zip", "100"],
    "network": [*NETWORK, "--precision", "fp32"],
    "precision": ["--images", "4"],
    "precision_recall": ["--n", "100", "--dim", "8"],
    "sampling": [*NETWORK, "--steps", "2", "--latent"],
    "scaling": [*NETWORK, "--steps", "2", "--ranks", "1", "--further", "1"],
    "writing": ["--size", "32", "--images", "8", "--sampling", "0.001"],
}
SLOW = {"decoding", "evaluation", "load", "precision", "precision_recall", "scaling"}  # ten seconds


def command(name):
    return importlib.import_module(f"scripts.bench.{name}").main


def invoke(name, options, out):
    """Run a benchmark; restore the variables that it sets for its subprocesses."""
    before = dict(os.environ)
    try:
        return CliRunner().invoke(command(name), [*options, "--rounds", "1", "--out", str(out)])
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.filterwarnings("ignore:This DataLoader")  # torch-fidelity's
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TINY]
)
def test_it_runs(name, tmp_path):
    result = invoke(name, TINY[name], tmp_path)
    assert result.exit_code == 0, (result.output, result.exception)
    record = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    assert record["command"] and record["versions"] and record["rows"]
    assert (tmp_path / f"{name}.md").read_text("utf-8").count("\n| ") == len(record["rows"]) + 2


def test_every_benchmark_is_tried():
    files = {path.stem for path in (ROOT / "scripts/bench").glob("*.py")}
    assert files - {"paired", "networks", "checkouts", "photographs"} == set(TINY)


def test_ratios_are_medians_over_rounds():
    times = iter([(0, 1, 1), (0, 2, 4), (0, 2, 1), (0, 10, 2), (0, 1, 1), (0, 3, 5)])
    runs = in_turns({"ours": None, "peer": None}, 3, timed=lambda code: next(times))
    assert summary(runs)["peer"]["times ours"] == 3 and summary(runs)["peer"]["CPU times ours"] == 4


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_an_earlier_commit_is_imported_beside_the_current_package():
    from erk.models.edm2 import Precond

    earlier = checkouts.earlier_precond("HEAD")
    assert earlier is not Precond and earlier.__name__ == "Precond"
    assert importlib.import_module("erk.models.edm2").Precond is Precond


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    result = invoke("network", ["--size", "tiny", "--peer", str(tmp_path)], tmp_path)
    assert result.exit_code == 2 and "is not a checkout of NVlabs/edm2" in result.output


def test_gpu_script_calls_the_benchmarks_with_known_options(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shown = subprocess.run(["bash", "scripts/bench/gpu.sh"], cwd=ROOT, text=True,
                           capture_output=True, env=os.environ | {"PYTHON": "echo"})  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    prefix = "-m scripts.bench."
    lines = [line for line in shown.stdout.splitlines() if line.startswith(prefix)]
    assert len(lines) == 12
    for line in lines:
        name, *options = line.removeprefix(prefix).split()
        command(name).make_context(name, options)  # raises UsageError for an unknown option

"""Every solver, ablation and rival through generate.py's options."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from erk.commands import generate
from erk.method.solvers import SOLVERS


def run(folder, *options, preset="digits"):
    base = ["--preset", preset, "--seeds", "0-2", "--batch", "3", "--outdir", str(folder)]
    return CliRunner().invoke(generate.main, [*base, *options])


def settings(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_runs_with_erk_guid_and_autoguidance(tmp_path, solver):
    schedule = {"deis": "time_uniform", "dpmpp": "logsnr", "unipc": "logsnr"}.get(solver, "edm")
    result = run(
        tmp_path / "o", "--solver", solver, "--schedule", schedule, "--steps", "4",
        "--w-stiff", "0.5", "--w-con", "0.1", preset="digits-autog",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = settings(tmp_path / "o")
    assert record["settings"]["solver"] == solver and record["nfe"] == record["guide_nfe"] > 0


def test_options_reach_the_solver(tmp_path):
    ends = []
    for i, options in enumerate((["order=1"], ["order=2"], ["order=2", "predict_x0=false"])):
        given = [part for option in options for part in ("--solver-option", option)]
        result = run(
            tmp_path / str(i), "--solver", "dpmpp", "--schedule", "80,9,2,0.5,0.1,0", *given
        )
        assert result.exit_code == 0, result.output
        ends.append((tmp_path / str(i) / "000000.png").read_bytes())
    assert len(set(ends)) == 3
    stored = settings(tmp_path / "2")["settings"]
    assert stored["solver_options"] == {"order": 2, "predict_x0": False}
    assert stored["schedule"] == [80, 9, 2, 0.5, 0.1, 0]


def test_auto_is_recorded_and_says_where_it_can_do_nothing(tmp_path):
    for solver, is_idle in (("heun", False), ("deis", True)):
        how = ["--steps", "4", "--solver", solver, "--schedule", "edm", "--erk", "auto"]
        result = run(tmp_path / solver, *how)
        assert result.exit_code == 0, result.output
        assert ("has no effect for" in result.stderr) == is_idle
        report = settings(tmp_path / solver)["correction"]
        assert len(report["sigmas"]) == 4 and any(map(any, report["weights"])) != is_idle


def test_trace_is_written_in_seed_order(tmp_path):
    file = tmp_path / "traces" / "t.npz"
    result = run(tmp_path / "o", "--steps", "5", "--w-stiff", "0.5", "--trace", str(file))
    assert result.exit_code == 0, result.output
    trace = np.load(file)
    assert trace["seeds"].tolist() == [0, 1, 2] and trace["sigmas"].shape == (5,)
    for name in ("stiffness", "gate", "dx", "df", "cosine", "push"):
        assert trace[name].shape == (5, 3)
    assert np.isnan(trace["stiffness"][0]).all() and (trace["stiffness"][1:-1] > 0).all()


def test_rivals_and_ablations_change_the_result_and_their_nfe_is_counted(tmp_path):
    cases = {
        "plain": [],
        "erk": ["--w-stiff", "0.5", "--w-con", "0.3"],
        "abs": ["--w-stiff", "0.5", "--w-con", "0.3", "--erk-scale", "abs"],
        "proj": ["--w-stiff", "0.5", "--erk_proj"],
        "adaptive": ["--adaptive-tau", "1"],
        "pc": ["--pc-snr", "0.1"],
        "pc quiet": ["--pc-snr", "0.1", "--pc-deterministic"],
        "afs": ["--afs"],
    }
    nfe, ends = {}, {}
    for name, options in cases.items():
        result = run(tmp_path / name, "--steps", "6", *options, preset="digits-autog")
        assert result.exit_code == 0, result.output
        nfe[name] = settings(tmp_path / name)["nfe"]
        ends[name] = (tmp_path / name / "000001.png").read_bytes()
    assert len(set(ends.values())) == len(cases)
    assert (nfe["plain"], nfe["erk"], nfe["pc"], nfe["afs"]) == (11, 11, 16, 10)
    assert 11 < nfe["adaptive"] < 22


BAD = {
    "choose one of euler, heun": ["--solver", "rk45"],
    "choose one of edm, polynomial": ["--schedule", "cosine"],
    "strictly decreasing": ["--schedule", "1,2,0"],
    "numbers with commas": ["--schedule", "80,x"],
    "order of the solver 'deis' must be 1 to 4": [
        "--solver", "deis", "--solver-option", "order=7"
    ],
    "has no option 'order'": ["--solver-option", "order=2"],
    "wants NAME=VALUE": ["--solver-option", "order"],
    "--solver-option gives order twice": [  # J
        "--solver", "deis", "--solver-option", "order=2", "--solver-option", "order=3"
    ],
    "guidance_interval (--guidance-interval) needs model guidance": ["--guidance-interval", "0,1"],
    "guidance_kind (--guidance-kind) needs model guidance": ["--guidance-kind", "cfg++"],
    "exclude each other": ["--pc-snr", "0.1", "--w-stiff", "1"],
    "erk_proj (--erk-proj) needs model guidance": ["--erk-proj", "--w-stiff", "1"],
    "a discrete time": ["--schedule", "discrete"],
    "end at 0 already": ["--denoise-to-zero"],
}  # fmt: skip


@pytest.mark.parametrize(("message", "options"), BAD.items(), ids=list(BAD))
def test_bad_options_are_refused_before_anything_is_written(tmp_path, message, options):
    result = run(tmp_path / "o", *options)
    assert result.exit_code == 2 and message in result.output
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1
    assert not (tmp_path / "o").exists()

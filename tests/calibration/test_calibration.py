"""Calibrated corrections: what a fit finds, and the command that writes a card."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import erk
from erk.calibration import job as calibrate_job
from erk.calibration import tune_job
from erk.calibration.card import read_card
from erk.calibration.fit import USUAL, Batch, System, fit
from erk.calibration.problem import Problem
from erk.calibration.solver_error import converged, errors, reference_path
from erk.commands import generate
from erk.commands.calibrate import main
from erk.io.atomic import write_file
from erk.method.drift import GuidedDrift
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS

ROOT = Path(__file__).parents[2]


def gauss(x, sigma, labels=None):
    """The exact denoiser of N(0, 0.5^2)."""
    return x * 0.25 / (0.25 + sigma**2)


def batch(plan, seed, model=gauss, n=8):
    noise = torch.randn(n, 4, dtype=plan.dtype, generator=torch.Generator().manual_seed(seed))
    return Batch(noise, None, reference_path(GuidedDrift(model), noise, plan.sigmas(), 400))


def test_the_normal_equations_are_least_squares():
    draw = torch.Generator().manual_seed(0)
    ways = torch.randn(3, 40, 5, generator=draw, dtype=torch.float64)
    target = torch.randn(40, 5, generator=draw, dtype=torch.float64)
    system = System(3)
    for part in range(4):
        system.add(ways[:, part::4], target[part::4], target[part::4])
    weights, share = system.solve()
    a, b = ways.flatten(1).T, target.flatten()
    exact = torch.linalg.lstsq(a, b).solution
    assert torch.allclose(torch.tensor(weights, dtype=torch.float64), exact)
    assert share == pytest.approx(1 - ((b - a @ exact).square().sum() / b.square().sum()).item())
    ways[2] = ways[1]  # of two equal directions each gets half
    double = System(3)
    double.add(ways, target, target)
    weights, _ = double.solve()
    assert weights[1] == pytest.approx(weights[2])
    ways[0] *= 1e-6  # shorter than 1e-5 of Euler's step: what rounding left
    noise = System(3)
    noise.add(ways, target, target)
    assert noise.solve()[0][0] == 0


@pytest.mark.parametrize("solver", ["heun", "dpm2", "deis", "unipc"])
def test_one_scale_of_gaussian_data_is_solved_exactly(solver):
    """There every direction is a multiple of x, so that one of them removes the whole error."""
    plan = Settings(solver=solver, steps=6, schedule="polynomial", dtype=torch.float64)
    found = fit(plan, gauss, [batch(plan, 0)], ["drift"])
    fresh = batch(plan, 1)
    after = Settings(solver=solver, steps=6, schedule="polynomial", dtype=torch.float64,
                     erk=found.correction)  # fmt: skip
    before, own = (errors(p, gauss, fresh.noise, None, fresh.path[-1]) for p in (plan, after))
    assert own.mean() < 1e-3 * before.mean()


def test_heuns_fit_approaches_the_exponential_weight_of_its_difference():
    """On one scale error / e = -q (1 - r) to leading order, q = sigma^2/(S^2 + sigma^2)
    (docs/theory.md); fitted with a fine schedule the weights are that."""
    plan = Settings(steps=120, schedule="logsnr", dtype=torch.float64)
    found = fit(plan, gauss, [batch(plan, 0)], ["embedded"])
    for (weight,), (sigma, lower) in zip(
        found.correction.weights, pairwise(plan.sigmas().tolist()), strict=True
    ):
        if 0.1 < sigma < 10:
            q = sigma**2 / (0.25 + sigma**2)
            assert weight == pytest.approx(-q * (1 - lower / sigma), rel=0.25)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_guide_walks_the_path_that_was_fitted(solver):
    """Fitted in two batches and sampled in one: the calibration seeds end where the fit left them,
    nearer to the reference in every step."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(20), model)
    plan = Settings(solver=solver, steps=5, schedule="polynomial")
    path = reference_path(GuidedDrift(model, labels), noise, plan.sigmas(model), 48)
    parts = [
        Batch(noise[rows], labels[rows], path[:, rows]) for rows in (slice(0, 10), slice(10, 20))
    ]
    found = fit(plan, model, parts, USUAL)
    assert all(0 < share <= 1 for share in found.explained)
    after = Settings(solver=solver, steps=5, schedule="polynomial", erk=found.correction)
    before, own = (errors(p, model, noise, labels, path[-1]).mean() for p in (plan, after))
    assert own < 0.8 * before


JOB = ["--preset", "digits", "--steps", "4", "--seeds", "50-73", "--held-out", "80-95",
       "--batch", "8", "--evaluations", "40"]  # fmt: skip


def command(*words):
    return CliRunner().invoke(main, list(words))


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    place = tmp_path_factory.mktemp("cards") / "a.card.json"
    done = command(*JOB, "--out", str(place))
    assert done.exit_code == 0, done.output
    assert not place.with_name("a.card.json.parts").exists()
    return place


def test_the_card_tells_what_it_is_for_and_what_it_gains(card):
    told = json.loads(card.read_text())
    assert told["for"]["network"] == erk.load_model("digits").sha256
    assert told["for"]["solver"] == "heun" and told["for"]["steps"] == 4
    assert len(told["sigmas"]) == 4 and len(told["weights"]) == len(told["explained"]) == 3
    assert told["held_out"]["ratio"]["value"] < 0.5 and told["held_out"]["ratio"]["error"] < 0.1
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(80, 96), model)
    exact = converged(Settings(steps=4), model, noise, labels)
    own = errors(Settings(steps=4, erk=read_card(card)), model, noise, labels, exact).mean().item()
    assert own == pytest.approx(told["held_out"]["after"]["value"], rel=0.02)
    # per sample: 24 paths of 40 and a run of 7; 16 paths and two runs; 8 rough paths of 20
    assert told["cost"]["evaluations"] == 24 * (40 + 7) + 16 * (40 + 14) + 8 * 20


def test_pictures_by_a_card(card, tmp_path):
    job = ["--preset", "digits", "--seeds", "0-3", "--batch", "4", "--steps", "4"]
    done = CliRunner().invoke(
        generate.main, [*job, "--erk", str(card), "--outdir", str(tmp_path / "a")]
    )
    assert done.exit_code == 0, done.output
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["settings"]["erk"] == f"card {Settings(steps=4, erk=read_card(card)).erk.key}"
    assert run["correction"]["weights"] == json.loads(card.read_text())["weights"]
    for more, message in ((["--w-stiff", "1"], "leave w_stiff at 0"), (["--afs"], "afs")):
        done = CliRunner().invoke(
            generate.main, [*job, "--erk", str(card), *more, "--outdir", f"{tmp_path}/b"]
        )
        assert done.exit_code == 2 and message in done.output
    assert not (tmp_path / "b").exists()


def test_a_killed_calibration_goes_on_to_the_same_card(card, tmp_path, monkeypatch):
    place = tmp_path / "a.card.json"
    words = [sys.executable, "-m", "erk", "calibrate", *JOB, "--out", str(place)]
    job = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    part = tmp_path / "a.card.json.parts" / "fit-000001.safetensors"
    while not part.exists() and job.poll() is None:
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not place.exists() and part.exists()
    kept = [path.name for path in part.parent.glob("*.safetensors")]
    other = command(*JOB, "--out", str(place), "--evaluations", "41")
    assert other.exit_code == 2 and "parts of another calibration" in other.output
    written = []
    monkeypatch.setattr(
        calibrate_job,
        "write_file",
        lambda path, data: (written.append(path.name), write_file(path, data)),
    )
    assert command(*JOB, "--out", str(place)).exit_code == 0
    assert len(written) > 2 and not {*written} & {*kept}
    assert place.read_bytes() == card.read_bytes()


def test_a_card_that_is_there_is_not_paid_for_again(card, monkeypatch):
    before = card.read_bytes()
    monkeypatch.delattr(calibrate_job, "calibrate")
    again = command(*JOB, "--out", str(card))
    assert again.exit_code == 0 and "nothing to do" in again.output
    for other in (["--solver", "dpm2"], ["--held-out", "81-95"], ["--evaluations", "41"]):
        done = command(*JOB, "--out", str(card), *other)
        assert done.exit_code == 2 and "choose another --out" in done.output
    assert card.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0-9", "--held-out", "5-20"], "share seeds"),
        (["--seeds", "0-9", "--held-out", "11"], "two seeds at least"),
        (["--solver", "heum"], "unknown solver"),
        (["--direction", "up"], "--direction wants"),
        (["--guidance", "2"], "needs a guiding network"),
        (["--class", "11"], "class 11 is out of range"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, words, message):
    done = command("--preset", "digits", *words, "--out", str(tmp_path / "x.json"))
    assert done.exit_code == 2 and message in done.output
    assert not (tmp_path / "x.json").exists()


def test_a_dry_run_tells_the_cost_and_does_nothing(tmp_path):
    done = command("--preset", "digits-cfg", "--out", str(tmp_path / "x.json"), "--dry-run")
    assert done.exit_code == 0 and "of the guide" in done.output
    assert [*tmp_path.iterdir()] == []


def test_levels_of_a_networks_own_time_have_a_cost(tmp_path):
    """`discrete` levels are known to the network alone: counted with it, here as in tune."""

    class Timed:
        sigma_min, sigma_max = 0.01, 50.0
        sigma = sigma_inv = staticmethod(lambda t: t)

    plan = Settings(solver="dpm2", schedule="discrete", steps=5)
    job = calibrate_job.Job(Timed(), None, plan, "random", 8, 40, None, USUAL, tmp_path / "a")
    told = calibrate_job.cost_of(job, 24, 16)
    assert told["per_image"] == 10 and told["guide_evaluations"] == 0
    assert told["evaluations"] == 24 * (40 + 10) + 16 * (40 + 20) + 8 * 20
    problem = Problem(Timed(), None, plan, None)
    asked = tune_job.Asked({}, plan, [*range(8)], [*range(8, 16)], 40, False)
    assert "runs of 10" in tune_job.cost(asked, problem)

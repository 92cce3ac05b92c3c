"""Choosing w_stiff and w_con without FID: the choice is good on seeds it never saw."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from erk.api import sample
from erk.calibration import tune as tuning
from erk.calibration import tune_job
from erk.calibration.problem import ExactToy, Problem, count_nfe, run
from erk.commands.tune import main
from erk.io.atomic import write_file
from erk.method.settings import Settings

ROOT = Path(__file__).parents[2]
QUICK = ("--seeds", "200000-200015", "--held-out", "210000-210015")


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def card_of(place, *arguments):
    done = call(*arguments, "--out", place)
    assert done.exit_code == 0, done.output
    return json.loads(place.read_text())


def test_the_choice_is_within_5_percent_of_the_grids_best_on_the_toy(tmp_path):
    seeds = ("--seeds", "200000-200127", "--held-out", "210000-210063")
    card = card_of(tmp_path / "c.json", "--preset", "toy", "--steps", 8, *seeds, "--check")
    assert card["over_grid_best"] <= 1.05
    assert card["held_out"]["ratio"] < 0.7 and card["w_stiff"] > 0
    assert card["flags"] == f"--w-stiff {card['w_stiff']:g} --w-con {card['w_con']:g}"


def test_the_choice_is_within_5_percent_of_the_grids_best_on_digits(tmp_path):
    seeds = ("--seeds", "200000-200015", "--held-out", "210000-210007")
    card = card_of(tmp_path / "c.json", "--preset", "digits", "--steps", 5, *seeds, "--check")
    assert card["over_grid_best"] <= 1.05 and card["held_out"]["ratio"] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, 8, 12, 16])
@pytest.mark.parametrize("preset", ["digits", "toy"])
def test_the_choice_is_within_5_percent_of_the_grids_best(tmp_path, preset, steps):
    card = card_of(tmp_path / "c.json", "--preset", preset, "--steps", steps, "--check")
    assert card["over_grid_best"] <= 1.05


def test_guidance_labels_and_another_solver(tmp_path):
    """Card and picture say what was tuned; the guide's evaluations count."""
    card = card_of(
        tmp_path / "c.json", "--preset", "digits-cfg", "--solver", "dpm2", "--steps", 4,
        "--schedule", "polynomial", "--labels", "balanced", "--seeds", "1-8", "--held-out", "11-18",
    )  # fmt: skip
    assert card["settings"]["guidance"] == 1.25 and card["nfe"] == 16
    assert card["labels"] == "balanced" and len(card["sigmas"]) == 5
    assert card["network"]["sha256"] and card["guide"]["sha256"] != card["network"]["sha256"]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*work*"))


def test_weights_of_one_batch_act_each_on_its_own_sample():
    toy = ExactToy()
    plan = Settings(steps=6, sigma_max=5.0, dtype=torch.float64)
    problem = Problem(toy, None, plan, lambda seeds: (None, None))
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    pairs = [(0.4, 0.3), (0.0, 0.3), (0.8, 2.0)]
    together = run(problem, noise, None, tuning.weighted(*torch.tensor(pairs).unbind(1)))
    for i, (w_stiff, w_con) in enumerate(pairs):
        alone = sample(
            toy, noise[i : i + 1], steps=6, sigma_max=5.0, dtype=torch.float64,
            w_stiff=w_stiff, w_con=w_con,
        )  # fmt: skip
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    assert not torch.equal(together[0], together[1])


def test_candidates_lie_between_the_stiffness_of_the_steps():
    """On Gaussian data rho is known: sigma / (S^2 + sigma^2) at every step."""
    plan = Settings(steps=6, dtype=torch.float64)

    def gauss(x, sigma, labels=None):
        return x * 0.25 / (0.25 + torch.as_tensor(sigma, dtype=x.dtype) ** 2)

    def start(seeds):
        return torch.ones(len(seeds), 1, dtype=torch.float64), None

    problem = Problem(gauss, None, plan, start)
    pairs = tuning.candidates(problem, range(4), lambda _, make: make())
    sigmas = plan.sigmas()[1:-2]
    rho = (sigmas / (0.25 + sigmas**2)).sort().values
    levels = sorted({c for _, c in pairs})
    assert len(levels) == len(rho) and len(pairs) == len(levels) * len(tuning.WEIGHTS)
    inside = torch.searchsorted(rho, torch.tensor(levels, dtype=torch.float64)).tolist()
    assert inside == list(range(len(rho)))


def test_rounds_halve_candidates_and_double_seeds():
    found = list(tuning.rounds(104, 256))
    assert found == [(104, 8), (52, 16), (26, 32), (13, 64), (7, 128), (4, 256)]
    assert list(tuning.rounds(3, 8)) == [(3, 8)]


def test_no_gain_recommends_no_weights(tmp_path):
    """Euler of one correction that cannot win by two standard errors: the plain solver stays."""
    card = card_of(
        tmp_path / "c.json", "--preset", "toy", "--solver", "deis", "--schedule", "time_uniform",
        "--steps", 10, *QUICK,
    )  # fmt: skip
    assert card["flags"] == "--w-stiff 0" and card["held_out"]["ratio"] == 1


def test_dry_run_tells_the_cost_and_writes_nothing(tmp_path):
    done = call("--preset", "digits-cfg", "--steps", 8, "--out", tmp_path / "c.json", "--dry-run")
    assert done.exit_code == 0 and list(tmp_path.iterdir()) == []
    nfe = count_nfe(Settings(steps=8, guidance=1.25))
    runs = tuning.most_runs(256) + 2 * 256
    expected = 512 * 128 + runs * nfe[0]
    assert f"at most {expected:,.0f} evaluations of the network and {expected:,.0f}" in done.output


def test_a_killed_tuning_goes_on_to_the_same_card(tmp_path, monkeypatch):
    command = [sys.executable, "-m", "erk", "tune", "--preset", "toy", "--steps", "8",
               "--batch", "16", "--out"]  # fmt: skip
    whole = card_of(tmp_path / "whole.json", *command[2:-1], *QUICK)
    place = tmp_path / "killed.json"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(place), *QUICK], cwd=ROOT, env=env, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and len(list(tmp_path.glob("killed-work-*/round*"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [path.name for path in tmp_path.glob("killed-work-*/*.npy")]
    written = []
    monkeypatch.setattr(
        tune_job,
        "write_file",
        lambda path, data: (written.append(path.name), write_file(path, data)),
    )
    again = card_of(place, *command[2:-1], *QUICK)
    assert len(kept) >= 3 and len(written) > 2 and not {*written} & {*kept}
    assert {k: v for k, v in again.items() if k != "made_by"} == {
        k: v for k, v in whole.items() if k != "made_by"
    }
    done = call(*command[2:-1], *QUICK, "--out", place)
    assert done.exit_code == 0 and "nothing to do" in done.output
    done = call("--preset", "toy", "--steps", "9", *QUICK, "--out", place)
    assert done.exit_code == 2 and "other settings" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no network"),
        (["--preset", "dgits"], "did you mean digits"),
        (["--preset", "digits", "--solver", "hein"], "unknown solver"),
        (["--preset", "digits", "--steps", "0"], "steps"),
        (["--preset", "digits", "--seeds", "0-63", "--held-out", "63-100"], "seed 63"),
        (["--preset", "digits", "--seeds", "0-3"], "8 seeds or more"),
        (["--preset", "digits", "--out", "x.yaml"], ".json"),
        (["--preset", "toy", "--guidance", "2"], "the toy is exact"),
        (["--preset", "toy", "--class", "1"], "the toy has no classes"),
        (["--preset", "digits", "--class", "1", "--labels", "balanced"], "exclude each other"),
        (["--preset", "toy", "--steps", "2", *QUICK, "--out", "t/x.json"], "take more --steps"),
    ],
)
def test_bad_input_is_one_sentence(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_help_loads_no_torch():
    code = (
        "import sys; from erk.study.tune_command import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--held-out" in done.stdout, done.stderr

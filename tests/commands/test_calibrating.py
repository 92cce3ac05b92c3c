"""`erk calibrate` and `erk tune`: options in, a card out; a killed command continues."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import erk
from erk.calibration.search import most_runs
from erk.commands import calibrate, generate, tune

ROOT = Path(__file__).parents[2]
CALIBRATE = ["--preset", "digits", "--schedule", "edm", "--steps", "4", "--seeds", "50-73",
             "--held-out", "80-95", "--batch", "8", "--evaluations", "40"]  # fmt: skip
TUNE = ["--preset", "toy", "--schedule", "edm", "--steps", "8", "--seeds", "200000-200015",
        "--held-out", "210000-210015", "--batch", "16"]  # fmt: skip


def call(command, *arguments):
    return CliRunner().invoke(command.main, [str(a) for a in arguments])


def card_of(command, path, *arguments):
    done = call(command, *arguments, "--out", path)
    assert done.exit_code == 0, done.output
    return json.loads(path.read_text())


def killed(path, *arguments, parts):
    """Run a command and kill it as soon as it has stored so many parts; return their times."""
    process = subprocess.Popen(
        [sys.executable, "-m", "erk", *arguments, "--out", str(path)], cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = path.with_name(path.name + ".parts")
    while process.poll() is None and len(list(folder.glob("*.safetensors"))) < parts:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not path.exists()
    stored = list(folder.glob("*.safetensors"))
    assert len(stored) >= parts
    return {part.name: part.stat().st_mtime_ns for part in stored}


@pytest.fixture
def kept_parts(monkeypatch):
    """Keep the stored parts of a finished command."""
    monkeypatch.setattr("erk.calibration.parts.Parts.remove", lambda self: None)

    def times(path):
        folder = path.with_name(path.name + ".parts")
        return {part.name: part.stat().st_mtime_ns for part in folder.glob("*.safetensors")}

    return times


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    path = tmp_path_factory.mktemp("cards") / "a.card.json"
    card_of(calibrate, path, *CALIBRATE)
    assert [p.name for p in path.parent.iterdir()] == ["a.card.json"]
    return path


def test_a_card_says_what_it_is_for_and_what_it_gains(card):
    content = json.loads(card.read_text())
    assert content["for"]["network"] == erk.load_model("digits").sha256
    assert content["for"]["solver"] == "heun" and content["for"]["steps"] == 4
    assert len(content["sigmas"]) == 4
    assert len(content["weights"]) == len(content["explained"]) == 3
    assert content["held_out"]["ratio"]["value"] < 0.5
    assert content["held_out"]["ratio"]["error"] < 0.1
    assert content["calibration"]["seeds"] == "50-73" and content["commit"]
    # per sample: 24 paths of 40 and a run of 7; 16 paths and two runs; 8 rough paths of 20
    assert content["cost"]["evaluations"] == 24 * (40 + 7) + 16 * (40 + 14) + 8 * 20


def test_generate_takes_the_card(card, tmp_path):
    job = ["--preset", "digits", "--schedule", "edm", "--seeds", "0-3", "--batch", "4",
           "--steps", "4", "--erk", card]  # fmt: skip
    done = call(generate, *job, "--outdir", tmp_path / "a")
    assert done.exit_code == 0, done.output
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["correction"]["weights"] == json.loads(card.read_text())["weights"]
    for more, message in ((["--w-stiff", "1"], "w_stiff"), (["--afs"], "afs")):
        done = call(generate, *job, *more, "--outdir", tmp_path / "b")
        assert done.exit_code == 2 and message in done.output
    assert not (tmp_path / "b").exists()


def test_generate_warns_once_of_a_card_without_gain(card, tmp_path):
    content = json.loads(card.read_text())
    content["held_out"]["ratio"] = {"value": 0.99, "error": 0.02}
    (tmp_path / "bad.card.json").write_text(json.dumps(content))
    done = call(generate, "--preset", "digits", "--schedule", "edm", "--seeds", "0", "--steps", "4",
                "--erk", tmp_path / "bad.card.json", "--outdir", tmp_path / "a")  # fmt: skip
    assert done.exit_code == 0 and done.stderr.count("leave it out") == 1


def test_an_existing_card_is_not_computed_again(card, monkeypatch):
    before = card.read_bytes()
    monkeypatch.setattr("erk.calibration.calibrate.calibrate_problem", None)
    again = call(calibrate, *CALIBRATE, "--out", card)
    assert again.exit_code == 0 and "nothing to do" in again.output
    for other in (["--solver", "dpm2"], ["--held-out", "81-95"], ["--evaluations", "41"]):
        done = call(calibrate, *CALIBRATE, "--out", card, *other)
        assert done.exit_code == 2 and "choose another --out" in done.output
    assert card.read_bytes() == before


def test_a_killed_calibration_continues_to_the_same_card(card, tmp_path, kept_parts):
    path = tmp_path / "a.card.json"
    stored = killed(path, "calibrate", *CALIBRATE, parts=2)
    assert call(calibrate, *CALIBRATE, "--out", path).exit_code == 0
    assert stored.items() <= kept_parts(path).items()  # none was computed twice
    contents = [json.loads(one.read_text()) for one in (path, card)]
    for content in contents:
        del content["command"]
    assert contents[0] == contents[1]


def test_a_killed_tuning_continues_to_the_same_card(tmp_path, kept_parts):
    uninterrupted = card_of(tune, tmp_path / "uninterrupted.json", *TUNE)
    path = tmp_path / "killed.json"
    stored = killed(path, "tune", *TUNE, parts=6)
    continued = card_of(tune, path, *TUNE)
    assert stored.items() <= kept_parts(path).items()
    for content in (continued, uninterrupted):
        del content["made_by"]
    assert continued == uninterrupted
    done = call(tune, *TUNE, "--out", path)
    assert done.exit_code == 0 and "nothing to do" in done.output
    done = call(tune, *TUNE, "--steps", 9, "--out", path)
    assert done.exit_code == 2 and "other settings" in done.stderr


def test_tuning_with_guidance_labels_and_another_solver(tmp_path):
    """Card and plot say what was tuned; the guide's evaluations count."""
    card = card_of(
        tune, tmp_path / "c.json", "--preset", "digits-cfg", "--solver", "dpm2", "--steps", 4,
        "--schedule", "polynomial", "--labels", "balanced", "--seeds", "1-8", "--held-out", "11-18",
    )  # fmt: skip
    assert card["settings"]["guidance"] == 1.25 and card["nfe"] == 16
    assert card["labels"] == "balanced" and len(card["sigmas"]) == 5
    assert card["network"]["sha256"] and card["guide"]["sha256"] != card["network"]["sha256"]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.png"]
    assert card["flags"] == f"--w-stiff {card['w_stiff']:g} --w-con {card['w_con']:g}"


def test_a_dry_run_tells_the_cost_and_writes_nothing(tmp_path):
    done = call(calibrate, "--preset", "digits-cfg", "--out", tmp_path / "x.json", "--dry-run")
    assert done.exit_code == 0 and "of the guide" in done.output
    done = call(tune, "--preset", "digits-cfg", "--schedule", "edm", "--steps", 8,
                "--out", tmp_path / "c.json", "--dry-run")  # fmt: skip
    expected = 512 * 128 + (most_runs(256) + 2 * 256) * 15
    assert f"at most {expected:,.0f} evaluations of the network and {expected:,.0f}" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (calibrate, ["--preset", "digits", "--seeds", "0-9", "--held-out", "5-20"], "seed 5 is in"),
        (calibrate, ["--preset", "digits", "--direction", "up"], "--direction takes"),
        (calibrate, ["--preset", "digits", "--guidance", "2"], "needs a guiding network"),
        (calibrate, ["--preset", "digits", "--class", "11"], "class 11 is out of range"),
        (tune, [], "no network"),
        (tune, ["--preset", "dgits"], "did you mean digits"),
        (tune, ["--preset", "digits", "--solver", "hein"], "unknown solver"),
        (tune, ["--preset", "digits", "--seeds", "0-63", "--held-out", "63-100"], "seed 63"),
        (tune, ["--preset", "digits", "--out", "x.yaml"], ".json"),
        (tune, ["--preset", "toy", "--guidance", "2"], "the toy is exact"),
        (tune, ["--preset", "toy", "--class", "1"], "the toy has no classes"),
        (tune, ["--preset", "digits", "--class", "1", "--labels", "balanced"], "exclude"),
        (tune, [*TUNE, "--steps", "2", "--out", "t/x.json"], "take more --steps"),
    ],
)
def test_bad_input_is_one_sentence(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(command, *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json"))

"""`erk calibrate`: options in, a card out; a killed command continues."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import erk
from erk.commands import calibrate, generate, tune

ROOT = Path(__file__).parents[2]
CALIBRATE = ["--preset", "digits", "--solver", "heun", "--schedule", "edm", "--nfe", "7", "--seeds",
             "16", "--batch", "8", "--evaluations", "40", "--correction", "stepwise"]  # fmt: skip
TOY = ["--preset", "toy", "--nfe", "3", "--solver", "deis", "--seeds", "8", "--evaluations", "40",
       "--correction", "stepwise"]  # fmt: skip


def call(command, *arguments):
    return CliRunner().invoke(command.main, [str(a) for a in arguments])


def killed(path, *arguments, parts):
    """Run a command and kill it as soon as it has stored so many parts; return their times."""
    process = subprocess.Popen(
        [sys.executable, "-m", "erk", "calibrate", *arguments, "--out", str(path)], cwd=ROOT,
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


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    path = tmp_path_factory.mktemp("cards") / "a.card.json"
    done = call(calibrate, *CALIBRATE, "--out", path)
    assert done.exit_code == 0, done.output
    assert "calibration: at most" in done.stderr and " s here" in done.stderr
    count, most = map(int, re.findall(r"(\d+) of at most (\d+) evaluations", done.stderr)[-1])
    assert 0 < count <= most and f"at most {most:,} evaluations of the network" in done.stderr
    assert "best published sampler" in done.stdout and "no gain" not in done.stdout.lower()
    assert [p.name for p in path.parent.iterdir()] == ["a.card.json"]
    return path


def test_a_card_says_what_it_is_for_and_what_it_gains(card):
    content = json.loads(card.read_text())
    assert content["networks"] == {"network": erk.load_model("digits").sha256, "guide": None}
    assert content["settings"]["solver"] == "heun" and content["settings"]["steps"] == 4
    assert len(content["correction"]["sigmas"]) == 4
    assert content["errors"]["ratio"]["value"] < 0.5
    assert content["errors"]["ratio"]["error"] < 0.1
    assert content["errors"]["heun"] == content["errors"]["published"]
    assert content["calibration"]["seeds"] == ["900000-900015", "900016-900031", "900032-900047"]
    assert content["commit"] and content["evaluations"] > 48 * 40


def test_generate_takes_the_card(card, tmp_path):
    job = ["--preset", "digits", "--seeds", "0-3", "--batch", "4", "--card", card]
    done = call(generate, *job, "--steps", "4", "--outdir", tmp_path / "a")
    assert done.exit_code == 0, done.output
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    content = json.loads(card.read_text())
    assert run["correction"]["weights"] == content["correction"]["weights"] and run["nfe"] == 7
    for more, message in ((["--w-stiff", "1"], "sets w_stiff"), (["--afs"], "sets afs"),
                          (["--steps", "32"], "sets steps to 4"), (["--erk", "auto"], "sets erk"),
                          (["--solver", "deis"], "sets solver"), (["--pc-snr", "1"], "pc_snr"),
                          (["--net", "checkpoints/digits-weak.safetensors"], "other networks"),
                          ):  # fmt: skip
        done = call(generate, *job, *more, "--outdir", tmp_path / "b")
        assert done.exit_code == 2 and message in done.output, (more, done.output)
    done = call(generate, "--preset", "digits-cfg", *job[2:], "--outdir", tmp_path / "b")
    assert done.exit_code == 2 and "sets guidance to 1.0" in done.output
    done = call(generate, *job[:-1], tmp_path / "none.json", "--outdir", tmp_path / "b")
    assert done.exit_code == 2 and "there is no card" in done.output
    assert not (tmp_path / "b").exists()


def test_generate_warns_once_of_a_card_without_gain(card, tmp_path):
    content = json.loads(card.read_text())
    content["errors"]["ratio"] = {"value": 0.99, "error": 0.02}
    (tmp_path / "bad.card.json").write_text(json.dumps(content))
    done = call(generate, "--preset", "digits", "--seeds", "0", "--card",
                tmp_path / "bad.card.json", "--outdir", tmp_path / "a")  # fmt: skip
    assert done.exit_code == 0 and done.stderr.count("no gain") == 1


def test_an_existing_card_is_not_computed_again(card, monkeypatch):
    before = card.read_bytes()
    monkeypatch.setattr("erk.calibration.calibrate.calibrate_problem", None)
    again = call(calibrate, *CALIBRATE, "--out", card)
    assert again.exit_code == 0 and "nothing to do" in again.output
    for other in (["--solver", "dpm2"], ["--seeds", "17"], ["--evaluations", "41"]):
        done = call(calibrate, *CALIBRATE, "--out", card, *other)
        assert done.exit_code == 2 and "choose another --out" in done.output
    assert card.read_bytes() == before


def test_a_killed_calibration_continues_to_the_same_card(card, tmp_path, monkeypatch):
    monkeypatch.setattr("erk.calibration.parts.Parts.remove", lambda self: None)
    path = tmp_path / "a.card.json"
    stored = killed(path, *CALIBRATE, parts=3)
    assert call(calibrate, *CALIBRATE, "--out", path).exit_code == 0
    folder = path.with_name(path.name + ".parts")
    times = {part.name: part.stat().st_mtime_ns for part in folder.glob("*.safetensors")}
    assert stored.items() <= times.items()  # none was computed twice
    contents = [json.loads(one.read_text()) for one in (path, card)]
    for content in contents:
        del content["command"]
    assert contents[0] == contents[1]


def test_the_toy_and_free_noise_levels(tmp_path):
    done = call(calibrate, *TOY, "--out", tmp_path / "toy.card.json")
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "toy.card.json").read_text())
    assert content["settings"]["solver"] == "deis" and content["settings"]["sigma_max"] == 80
    assert content["calibration"]["network"] == "the exact toy, class A"
    assert {one["levels"] for one in content["contenders"]} == {"published", "dynamic", "refined"}


def test_tune_is_the_case_of_weights(tmp_path, monkeypatch):
    """The same content as calibrate's card with the one correction; both hold a w_stiff."""
    monkeypatch.setattr(sys, "argv", ["erk"])  # the command that a card records
    job = ["--preset", "digits", "--solver", "heun", "--schedule", "edm", "--nfe", "7", "--seeds",
           "8", "--evaluations", "40"]  # fmt: skip
    cards = []
    for command, more in ((tune, []), (calibrate, ["--correction", "weights"])):
        done = call(command, *job, *more, "--out", tmp_path / "x.card.json")
        assert done.exit_code == 0, done.output
        cards.append(json.loads((tmp_path / "x.card.json").read_text()))
        (tmp_path / "x.card.json").unlink()
    assert cards[0]["settings"]["w_stiff"] > 0
    for name in ("settings", "correction", "calibration", "contenders"):
        assert cards[0][name] == cards[1][name]


def test_a_dry_run_says_the_cost_and_writes_nothing(tmp_path):
    job = ["--preset", "digits-cfg", "--nfe", 15, "--solver", "heun", "--schedule", "edm",
           "--correction", "weights", "--out", tmp_path / "x.json", "--dry-run"]  # fmt: skip
    done = call(calibrate, *job)
    assert done.exit_code == 0 and "and as many of the guide" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "digits", "--seeds", "4"], "--seeds"),
        (["--preset", "digits", "--direction", "up"], "directions takes one or more of"),
        (["--preset", "digits", "--correction", "up"], "corrections takes one or more of"),
        (["--preset", "digits", "--nfe", "1", "--solver", "dpm2", "--schedule", "edm"],
         "too few evaluations: dpm2 at least"),
        (["--preset", "digits", "--guidance", "2"], "needs a guiding network"),
        (["--preset", "digits", "--class", "11"], "class 11 is out of range"),
        ([], "no network"),
        (["--preset", "dgits"], "did you mean digits"),
        (["--preset", "digits", "--solver", "hein"], "unknown solver"),
        (["--preset", "toy", "--guidance", "2"], "the toy is exact"),
        (["--preset", "toy", "--class", "1"], "the toy has no classes"),
        (["--preset", "digits", "--class", "1", "--labels", "balanced"], "exclude"),
        # siblings of H1: a dry run of such a plan took minutes and gigabytes
        (["--preset", "toy", "--nfe", "1001"], "nfe must be an integer from 1 to 1000"),
        (["--preset", "toy", "--seeds", "100001"], "seeds must be an integer from 8 to 100000"),
        (["--preset", "toy", "--evaluations", "100001"], "evaluations must be an integer from 8"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(calibrate, *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"null", b"\xff", b""])
def test_a_file_that_is_no_card_is_kept(content, tmp_path):
    """A sibling of H2: deeply nested JSON ended in a RecursionError."""
    (path := tmp_path / "x.json").write_bytes(content)
    done = call(calibrate, "--preset", "toy", "--out", path)
    assert done.exit_code == 2 and "holds the result of other settings" in done.stderr
    assert path.read_bytes() == content

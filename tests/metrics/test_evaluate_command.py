"""evaluate.py end to end: in this process, and once as the user runs it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from evaluate import main
from metrics.extractors.digits import WEIGHTS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def test_row_and_table(evaluate, save_pngs, digits):
    folder = save_pngs(digits[0][:200], "run-0.5")
    (folder / "run.json").write_text(
        '{"seeds": "0-199", "complete": false, "images": 300, "settings": {"w_stiff": 0.5}}'
    )
    result = evaluate("--images", folder, "--ref", "digits", "--csv", "row.csv", "--device", "cpu")
    assert result.exit_code == 0, result.output
    row = json.loads(Path("results/run-0.5-digits.json").read_text())
    assert row["n"] == 200 and row["seeds"] == "0-199" and row["run"]["settings"]["w_stiff"] == 0.5
    assert row["precision"] == 1 and 0 < row["fd"] < 50 and row["fd_se"] > 0
    assert row["block_n"] == 40 and row["protocol"] == "digits" and row["device"] == "cpu"
    assert row["extractor_sha256"] == json.loads(WEIGHTS.with_suffix(".json").read_text())["sha256"]
    assert {"python", "torch", "numpy"} <= set(row["versions"])
    assert row["fd_floor"] > 0 and row["command"] and "commit" in row
    assert next(csv.DictReader(Path("row.csv").read_text().splitlines()))["n"] == "200"
    assert "not complete: it is to make 300 images" in result.output
    for shown in ("FD", "precision", "recall", "IS", "standard error", "run-0.5-digits.json"):
        assert shown in result.output


def test_defaults_and_seeds_from_names(evaluate, save_pngs, digits):
    folder = save_pngs(digits[0][:12])
    (folder / "000003.png").unlink()
    (folder / "000011.png").rename(folder / "000020.png")
    result = evaluate("--ref", "digits")
    assert result.exit_code == 0, result.output
    row = json.loads(Path("results/out-digits.json").read_text())
    assert row["seeds"] == "0-2,4-10,20"
    assert "too few for 64 features" in result.output


def test_balanced_labels_give_an_accuracy(evaluate, save_pngs, digits):
    images, labels = digits
    order = [int((labels == seed % 10).nonzero()[seed // 10]) for seed in range(100)]
    folder = save_pngs(images[order])
    (folder / "run.json").write_text('{"settings": {"labels": "balanced"}}')
    result = evaluate("--ref", "digits", "--json", "row.json", "--blocks", 1)
    assert result.exit_code == 0, result.output
    row = json.loads(Path("row.json").read_text())
    assert row["accuracy"] >= 0.97 and row["seeds"] == "0-99" and row["fd_se"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "out"], "--ref is missing"),
        (["--images", "nowhere", "--ref", "digits"], "nowhere does not exist"),
        (["--ref", "imagenet512"], "'imagenet512' is not available in this version"),
        (["--ref", "digits", "--batch", "0"], "batch size must be at least 1"),
        (["--ref", "digits", "--blocks", "-1"], "--blocks must be at least 1"),
        (["--ref", "digits", "--json", "out/000000.png/row.json"], "000000.png"),
    ],
)
def test_bad_input_is_one_sentence(evaluate, save_pngs, digits, arguments, message):
    save_pngs(digits[0][:20])
    result = evaluate(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not Path("results").exists()


def test_as_the_user_runs_it(save_pngs, digits, tmp_path):
    folder = save_pngs(digits[0][:40])
    command = [sys.executable, ROOT / "evaluate.py", "--images", folder, "--ref", "digits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "out-digits.json").exists()


def test_help_and_import_load_no_torch():
    code = "import sys, evaluate, metrics; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    help_text = subprocess.run([sys.executable, "evaluate.py", "--help"], cwd=ROOT, check=True,
                               capture_output=True, text=True).stdout  # fmt: skip
    assert "--ref" in help_text


def test_lazy_names_all_resolve():
    import metrics

    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = metrics.nonsense

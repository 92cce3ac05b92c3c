"""erk make-reference: from images to a file that evaluate.py measures against."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from erk.commands import nearest
from erk.commands.make_reference import main
from metrics.build_reference import extraction_plan
from metrics.extractors import extractor_names
from metrics.references import load_reference
from metrics.statistics import moments_of


@pytest.fixture
def real(save_pngs, digits):
    """A folder of 600 digits with their labels."""
    folder = save_pngs(digits[0][:600], "real")
    rows = [
        [path.name, int(label)]
        for path, label in zip(sorted(folder.iterdir()), digits[1][:600], strict=True)
    ]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    return folder


@pytest.fixture
def make(real, tmp_path, monkeypatch):
    """Run the command in this process, or in several under torchrun."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, processes=0, cache="cache"):
        options = ["--images", real, "--extractors", "digits", "--device", "cpu", *arguments]
        monkeypatch.setenv("ERK_CACHE", str(tmp_path / cache))
        if not processes:
            return CliRunner().invoke(main, [*map(str, options), "--cache", cache])
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [sys.executable, *torchrun, "-m", "erk", "make-reference", *options]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    return run


def test_statistics_features_and_labels(make, tmp_path, extractor, digits):
    dest = tmp_path / "mine.npz"
    run = {"settings": {"labels": "balanced"}}  # as generate.py leaves it
    (tmp_path / "real" / "run.json").write_text(json.dumps(run))
    done = make("--dest", dest, "--features")
    assert done.exit_code == 0, done.stderr
    written = load_reference(dest, {"digits": extractor})
    own, features = written.statistics["digits"], extractor(digits[0][:600]).features
    moments = moments_of(features)
    assert own.n == 600 and own.weights == extractor.sha256
    assert (written.protocol, written.image_size) == ("digits", 8)
    np.testing.assert_allclose(own.mean, moments.mean, rtol=1e-6)
    np.testing.assert_allclose(own.cov, moments.cov, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.features, features, rtol=1e-5, atol=1e-5)
    assert torch.equal(written.labels, digits[1][:600])


def test_processes_agree_to_the_last_bit(make, tmp_path):
    one = make("--dest", tmp_path / "1.npz")
    three = make("--dest", tmp_path / "3.npz", processes=3, cache="cache3")
    assert (one.exit_code, three.returncode) == (0, 0), one.output + three.stderr
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dest", "mine.pkl"], "call it mine.npz"),
        (["--dest", "mine.npz", "--protocol", "none"], "no protocol 'none'"),
        (["--dest", "mine.npz", "--extractors", "clip"], "clip"),
        (["--dest", "mine.npz", "--num", "1000"], "a subset has 2 to as many"),
        (["--dest", "mine.npz", "--weights", "digits=random:0"], "random weights measure nothing"),
        (["--dest", "mine.npz", "--weights", "foo"], "--weights wants NAME=FILE"),  # R12
        (  # R12
            ["--dest", "mine.npz", "--weights", "vgg16=random:0", "--allow-random-weights"],
            "weights for vgg16 are not used here",
        ),
        (["--dest", "mine.npz", "--batch", "0"], "0 is not in the range 1<=x"),  # R11
        (["--dest", "mine.npz", "--batch", "-3"], "-3 is not in the range 1<=x"),
        (  # R18
            ["--dest", "mine.npz", "--extractors", "digits-spatial"],
            "no statistics 'digits-spatial'",
        ),
    ],
)
def test_bad_input(make, arguments, message):
    done = make(*arguments)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("Error: ") == 1
    assert not Path("mine.npz").exists() and not Path("cache").exists()


def test_a_reference_is_replaced_only_if_asked(make):
    """R28"""
    Path("mine.npz").write_bytes(b"statistics of days")
    done = make("--dest", "mine.npz")
    assert done.exit_code == 2 and "mine.npz exists: choose another --dest" in done.stderr
    assert Path("mine.npz").read_bytes() == b"statistics of days"
    assert make("--dest", "mine.npz", "--overwrite").exit_code == 0
    assert load_reference("mine.npz").statistics["digits"].n == 600


def test_plans_refuse_an_empty_batch():
    """R11: from Python, too"""
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, not 0"):
        extraction_plan(["digits"], {}, torch.device("cpu"), batch=0)


@pytest.mark.parametrize("command", [main, nearest.main])
def test_the_help_page_names_every_extractor(command):
    """R33"""
    words = CliRunner().invoke(command, ["--help"]).output.replace(",", " ").replace(".", " ")
    assert {*extractor_names()} <= {*words.split()}

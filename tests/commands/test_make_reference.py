"""erk make-reference: from images to a file that evaluate.py measures against."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.references import load_reference
from metrics.statistics import moments_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path, save_pngs, digits):
    folder = save_pngs(digits[0][:600], "real")
    rows = [
        [path.name, int(label)]
        for path, label in zip(sorted(folder.iterdir()), digits[1][:600], strict=True)
    ]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))

    def run(*arguments, processes=0, cache="cache"):
        env = os.environ | {"OMP_NUM_THREADS": "1", "ERK_CACHE": str(tmp_path / cache)}
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes else []), "-m", "erk", "make-reference"]
        command += ["--images", folder, "--extractors", "digits", "--device", "cpu", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    return run


def test_statistics_features_and_labels(make, tmp_path, extractor, digits):
    dest = tmp_path / "mine.npz"
    run = {"settings": {"labels": "balanced"}}  # as generate.py leaves it
    (tmp_path / "real" / "run.json").write_text(json.dumps(run))
    done = make("--dest", dest, "--features")
    assert done.returncode == 0, done.stderr
    made = load_reference(dest, {"digits": extractor})
    own, features = made.statistics["digits"], extractor(digits[0][:600]).features
    moments = moments_of(features)
    assert own.n == 600 and own.weights == extractor.sha256
    assert (made.protocol, made.image_size) == ("digits", 8)
    np.testing.assert_allclose(own.mean, moments.mean, rtol=1e-6)
    np.testing.assert_allclose(own.cov, moments.cov, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.features, features, rtol=1e-5, atol=1e-5)
    assert torch.equal(made.labels, digits[1][:600])


def test_processes_agree_to_the_last_bit(make, tmp_path):
    for n in (0, 2, 3):
        done = make("--dest", tmp_path / f"{n}.npz", processes=n, cache=f"cache{n}")
        assert done.returncode == 0, done.stderr
    one, *others = ((tmp_path / f"{n}.npz").read_bytes() for n in (0, 2, 3))
    assert all(other == one for other in others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dest", "mine.pkl"], "call it mine.npz"),
        (["--dest", "mine.npz", "--protocol", "none"], "no protocol 'none'"),
        (["--dest", "mine.npz", "--extractors", "clip"], "clip"),
        (["--dest", "mine.npz", "--num", "1000"], "a subset has 2 to as many"),
        (["--dest", "mine.npz", "--weights", "digits=random:0"], "random weights measure nothing"),
    ],
)
def test_bad_input(make, arguments, message):
    done = make(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (ROOT / "mine.npz").exists()

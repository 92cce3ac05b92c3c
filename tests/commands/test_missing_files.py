"""Every command names all missing files of its networks at once."""

from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner

import metrics
from erk.commands import evaluate, generate, make_reference

EVALUATE = ["--images", "fake.npz", "--real", "fake.npz"]
RUNS = [
    (evaluate, [*EVALUATE, "--protocol", "torch-fidelity"], ["inception", "vgg16"]),
    (evaluate, [*EVALUATE, "--ref", "imagenet64"], ["img64.pkl", "inception", "dinov2"]),
    (generate, ["--preset", "edm2-img64-s-autog"], ["img64-s-", "img64-xs-"]),
    (generate, ["--net", "https://h/a.safetensors?v=1"], ["a.safetensors (", "/h/a-"]),
    (make_reference, ["--images", "fake.npz", "--dest", "r.npz"], ["inception", "dinov2"]),
]


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    arrays = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    np.savez("fake.npz", arrays)
    return "fake.npz"


@pytest.mark.parametrize(("command", "arguments", "files"), RUNS)
def test_commands_name_all_files(images, command, arguments, files):
    done = CliRunner().invoke(command.main, [*arguments, "--offline"])
    message = done.stderr.splitlines()[-1]
    assert done.exit_code == 2, done.output
    assert message.startswith(f"Error: {len(files)} files are not in the cache, ")
    assert [one for one in files if one not in message] == []


def test_metrics_evaluate_names_all_files_unless_features_are_given(images):
    with pytest.raises(FileNotFoundError, match="^3 files are not in the cache, "):
        metrics.evaluate(images, "imagenet64", offline=True)
    with pytest.raises(ValueError, match="^protocol must be a name, not 3"):
        metrics.evaluate(images, "imagenet64", protocol=3, offline=True)
    names = {"inception": metrics.load_extractor("inception", weights="random:0")}
    features = metrics.extract(images, names)
    with pytest.raises(FileNotFoundError, match="img64.pkl is not in the cache"):
        metrics.evaluate(features, "imagenet64", metrics="fid", offline=True)


ALL = "add --weights inception=random:0 --weights vgg16=random:0 --allow-random-weights"
RANDOM = ["--weights", "inception=random:0", "--allow-random-weights"]
TRIALS = [
    (evaluate, [*EVALUATE, "--protocol", "torch-fidelity"], ALL),
    (evaluate, [*EVALUATE, "--protocol", "torch-fidelity", *RANDOM],
     "add --weights vgg16=random:0"),
    (evaluate, [*EVALUATE, "--protocol", "edm"], "add --weights inception=random:0"),
    (make_reference, ["--images", "fake.npz", "--dest", "r.npz", "--extractors", "vgg16"],
     "add --weights vgg16=random:0"),
    (evaluate, ["--images", "fake.npz", "--ref", "imagenet64", "--protocol", "edm"], None),
]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "trial"), TRIALS)
@pytest.mark.parametrize("offline", [True, False])
def test_the_error_names_the_weights_of_a_trial(
    images, monkeypatch, command, arguments, trial, offline
):
    """A user without internet was told of one network after the other."""
    monkeypatch.setattr("erk.io.download.PAUSE", 0.0)
    monkeypatch.setattr("socket.getaddrinfo", Mock(side_effect=OSError("no name")))
    monkeypatch.delenv("ERK_OFFLINE", raising=False)
    done = CliRunner().invoke(command.main, [*arguments, *["--offline"] * offline])
    message = done.stderr.splitlines()[-1]
    assert done.exit_code == 2 and message.startswith("Error: "), done.output
    if trial is None:  # random weights do not fit the reference
        assert "random" not in message
    else:
        assert f"; for a trial whose numbers measure nothing, {trial} " in message + " "
        assert message.endswith(" --allow-random-weights") and message.count("--allow") == 1

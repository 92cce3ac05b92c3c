"""Training denoisers: a killed run goes on to the same weights; mixed-up states are refused."""

import json
from dataclasses import replace

import pytest
import torch

from erk.models.model import load_model
from scripts.train import denoiser, digits
from scripts.train.denoiser import Run, learning_rate, train

RECIPE = replace(digits.RECIPE, batch=8)
RUN = Run(10, 0, {16: "early", 32: "late"})


@pytest.fixture
def data():
    return digits.encoded()


@pytest.fixture(autouse=True)
def keep_every_step(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(denoiser, "KEEP_EVERY", 8)
    yield
    torch.set_num_threads(threads)


class KilledError(Exception):
    """Stands for a kill -9: nothing is cleaned up."""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, data):
    train(RECIPE, RUN, data, "c", tmp_path / "straight")
    for interrupted_at in (8, 24):
        real_step = denoiser.step

        def step(state, *args, at=interrupted_at, real_step=real_step):
            if state.seen == at:
                raise KilledError
            return real_step(state, *args)

        monkeypatch.setattr(denoiser, "step", step)
        with pytest.raises(KilledError):
            train(RECIPE, RUN, data, "c", tmp_path / "resumed", tmp_path / "state")
        monkeypatch.setattr(denoiser, "step", real_step)
    train(RECIPE, RUN, data, "c", tmp_path / "resumed", tmp_path / "state")
    for name in RUN.snapshots.values():
        files = [tmp_path / kind / f"{name}.safetensors" for kind in ("straight", "resumed")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_snapshot_is_a_loadable_network_that_says_its_training(tmp_path, data):
    train(RECIPE, RUN, data, "python -m scripts.train.digits", tmp_path)
    model = load_model(tmp_path / "late.safetensors")
    assert model.sample_shape == (1, 8, 8) and model.label_dim == 10
    training = json.loads((tmp_path / "late.json").read_text())["training"]
    assert training["images"] == 32 and training["seed"] == 0
    assert training["command"] == "python -m scripts.train.digits"


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path, data):
    train(RECIPE, Run(10, 0, {8: "x"}), data, "c", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="another recipe, seed or data set"):
        train(replace(RECIPE, rate=1e-3), RUN, data, "c", tmp_path, tmp_path)
    fewer = data._replace(images=data.images[:100], classes=data.classes[:100])
    with pytest.raises(ValueError, match="another recipe, seed or data set"):
        train(RECIPE, RUN, fewer, "c", tmp_path, tmp_path)
    state = tmp_path / "seed0-labels10.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        train(RECIPE, RUN, data, "c", tmp_path, tmp_path)


def test_the_curve_holds_training_and_held_out_loss(tmp_path, data):
    held_out = data._replace(held_out=data.images[:20], held_out_classes=data.classes[:20])
    state = train(RECIPE, RUN, held_out, "c", tmp_path)
    (point,) = state.curve
    assert point["images"] == 32
    assert 0.5 < point["held_out"] < 2  # of an untrained network, weighted: about 1
    assert json.loads((tmp_path / "late.json").read_text())["training"]["curve"] == [point]


def test_learning_rate_ramps_up_and_decays():
    rate = digits.RECIPE.rate
    assert learning_rate(digits.RECIPE, 25_000) == pytest.approx(rate / 2)
    assert learning_rate(digits.RECIPE, 256_000) == pytest.approx(rate)
    assert learning_rate(digits.RECIPE, 1_024_000) == pytest.approx(rate / 2)

"""The toy's small networks: what they are, what they know, and that training repeats itself."""

import hashlib
import json
import shutil

import pytest
import torch

from erk.analysis import toy
from erk.analysis.oracles import cosine
from erk.analysis.toy_networks import CHECKPOINTS, load_network, read_metadata
from scripts.train import toy as train_toy

NAMES = ("toy-main", "toy-uncond", "toy-weak")
CLASS_A = torch.tensor([[1.0, 0.0]])


def test_the_script_trains_what_is_here():
    assert sorted(train_toy.RUNS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_their_metadata(name):
    weights, metadata = CHECKPOINTS / f"{name}.safetensors", read_metadata(name)
    assert weights.stat().st_size < 200_000
    assert metadata["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    run, training = train_toy.RUNS[name], metadata["training"]
    assert (training["steps"], training["seed"]) == (run.steps, run.seed)
    assert metadata["architecture"]["kwargs"]["label_dim"] == run.label_dim
    assert training["command"].endswith(f"--only {name}")


def test_losses_are_those_of_the_metadata_and_in_the_right_order():
    """Measured 0.737, 0.850 and 0.876; the exact denoiser gets 0.690 and, without labels, 0.805."""
    for name in NAMES:
        training = read_metadata(name)["training"]
        loss, exact = train_toy.held_out(load_network(name))
        assert loss == pytest.approx(training["held_out_loss"], rel=1e-3)
        assert exact == pytest.approx(training["loss_of_the_exact_denoiser"], rel=1e-3)
        assert exact < loss < 1.3 * exact
    main, weak = (
        read_metadata(name)["training"]["held_out_loss"] for name in ("toy-main", "toy-weak")
    )
    assert main < weak - 0.1


def test_cfg_points_the_way_of_the_exact_guidance():
    """Where both classes weigh in: median cosine with the exact difference, measured 0.998."""
    a, both, sigma = toy.tree("A"), toy.tree("AB"), torch.tensor(0.5)
    draw = torch.Generator().manual_seed(0)
    x = toy.draw_samples(a, 256, draw)[0].float() + sigma * torch.randn(256, 2, generator=draw)
    labels = CLASS_A.expand(256, 2)
    result = load_network("toy-main")(x, sigma, labels) - load_network("toy-uncond")(x, sigma)
    exact = toy.denoiser(a)(x, sigma, None) - toy.denoiser(both)(x, sigma, None)
    assert cosine(result, exact).median() > 0.98


def test_preconditioning():
    """D leaves x as it is at sigma -> 0 and forgets the distance at large sigma."""
    network = load_network("toy-uncond")
    x = torch.tensor([[0.3, 0.2], [-0.4, 0.1]])
    assert torch.allclose(network(x, 1e-5), x, atol=1e-4)
    far = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * 5
    assert network(far, 5.0).norm(dim=1).max() < 0.5  # measured 0.27
    rows = network(x, torch.tensor([0.1, 2.0]))
    assert torch.allclose(rows[1:], network(x[1:], 2.0), atol=1e-6)


def test_labels_matter_and_are_checked():
    network, x = load_network("toy-main"), torch.zeros(2, 2)
    a, b = (network(x, 1.0, torch.eye(2)[[index, index]]) for index in (0, 1))
    assert (a[:, 0] > b[:, 0]).all()  # A grows to the upper right, B to the lower left
    for labels in (None, CLASS_A, torch.ones(2, 3)):
        with pytest.raises(ValueError, match="one-hot labels"):
            network(x, 1.0, labels)


def test_loading_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    network = load_network("toy-weak")
    assert torch.equal(state, torch.random.get_rng_state())
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"toy-weak\.json is missing"):
        load_network("toy-weak", tmp_path)
    metadata = tmp_path / "toy-weak.json"
    shutil.copy(CHECKPOINTS / metadata.name, metadata)
    with pytest.raises(FileNotFoundError, match=r"toy-weak\.safetensors is missing"):
        load_network("toy-weak", tmp_path)
    (tmp_path / "toy-weak.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="does not have the sha256"):
        load_network("toy-weak", tmp_path)
    for text, said in (("{", "not JSON"), ("[]", "names no"), ('{"architecture": {}}', "names no")):
        metadata.write_text(text)
        with pytest.raises(ValueError, match=said):
            load_network("toy-weak", tmp_path)


def test_training_repeats_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(train_toy, "HELD_OUT", 64)
    state, files = torch.random.get_rng_state(), []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = train_toy.Run(width=16, label_dim=2, steps=5, seed=seed)
        metadata = train_toy.save_network("toy-tiny", run, tmp_path / folder)
        files.append((tmp_path / folder / "toy-tiny.safetensors").read_bytes())
        assert metadata["sha256"] == hashlib.sha256(files[-1]).hexdigest()
        assert json.loads((tmp_path / folder / "toy-tiny.json").read_text()) == metadata
    assert files[0] == files[1] != files[2]
    assert torch.equal(state, torch.random.get_rng_state())
    assert load_network("toy-tiny", tmp_path / "a").hidden[0].out_features == 16


def test_training_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(train_toy, "HELD_OUT", 1024)
    untrained, trained = (
        train_toy.held_out(train_toy.train(train_toy.Run(32, 2, steps, 0))[0])[0]
        for steps in (0, 60)
    )
    assert trained < 0.95 * untrained  # measured 0.92 and 1.01

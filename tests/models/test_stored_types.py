"""Weights of every stored type, arguments that the originals accept, tied and broken weights."""

import pytest
import torch
from golden_data import pickle_paths

from erk.io import pickles
from erk.io.budget import Budget
from erk.models import edm, edm2
from erk.models.checkpoint import Checkpoint, Part, build, read, write_safetensors

SMALL = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 8,
         "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8]}  # fmt: skip
EDM2 = SMALL | {"logvar_channels": 2, "channels_per_head": 8}


def checkpoint(name, network, kwargs, dtype=torch.float32):
    tensors = {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}
    return Checkpoint(Part(name, kwargs), Part("StandardRGBEncoder", {}), tensors, {})


def inputs():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 8, 8, generator=rng), torch.tensor([0.5, 3.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("unet", ["SongUNet", "DhariwalUNet"])
def test_edm_weights_of_any_type_are_those_numbers_in_float32(unet, dtype):  # M20
    torch.manual_seed(0)
    kwargs = SMALL | {"model_type": unet}
    stored = checkpoint("EDMPrecond", edm.EDMPrecond(**kwargs), kwargs, dtype)
    network, _ = build(stored, "net")
    wide = {name: tensor.float() for name, tensor in stored.tensors.items()}
    expected, _ = build(stored._replace(tensors=wide), "net")
    assert torch.equal(network(*inputs()), expected(*inputs()))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(name, value):  # M20: black images
    stored = checkpoint("EDMPrecond", edm.EDMPrecond(**SMALL), SMALL)
    stored.tensors[f"model.out_conv.{name}"][0] = value
    with pytest.raises(ValueError, match=f"out_conv.{name} holds NaN or infinity"):
        build(stored, "net")


def test_blocks_without_a_limit_of_activations():  # held out: clip_act None
    torch.manual_seed(0)
    states = edm2.Precond(**EDM2).state_dict()
    for name, tensor in states.items():
        if name.endswith(("emb_gain", "out_gain")):
            states[name] = torch.ones_like(tensor)
    outputs = []
    for clip in (None, 1e6, 0.1):
        kwargs = EDM2 | {"clip_act": clip}
        stored = Checkpoint(Part("Precond", kwargs), Part("StandardRGBEncoder", {}), states, {})
        outputs.append(build(stored, "net")[0](*inputs()))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("kwargs", [{"dropout": None}, {"clip_act": None, "res_balance": 0.0}])
def test_arguments_that_may_be_none(kwargs):
    build(checkpoint("Precond", edm2.Precond(**EDM2), EDM2 | kwargs), "net")


@pytest.mark.parametrize(("name", "unet"), [
    ("EDMPrecond", edm.DhariwalUNet), ("VPPrecond", edm.SongUNet),
    ("VEPrecond", edm.SongUNet), ("iDDPMPrecond", edm.DhariwalUNet),
])  # fmt: skip
def test_the_default_network_is_the_original_class(name, unet):
    assert isinstance(getattr(edm, name)(**SMALL).model, unet)


def test_tied_weights_are_written_twice(tmp_path):  # M21
    stored = checkpoint("EDMPrecond", edm.EDMPrecond(**SMALL), SMALL)
    first, second = (f"model.enc.8x8_block0.norm{i}.weight" for i in (0, 1))
    stored.tensors[second] = stored.tensors[first]
    write_safetensors(tmp_path / "a.safetensors", stored)
    again = read(tmp_path / "a.safetensors").tensors
    assert torch.equal(again[first], again[second])
    assert again[first].data_ptr() != again[second].data_ptr()


def test_recorded_positional_arguments_may_be_anything(tmp_path, monkeypatch):  # M21
    record = pickles.load(pickle_paths("edm2_auto")[0])["ema"]
    record.state["_init_args"] = torch.ones(2)
    monkeypatch.setattr(pickles, "read", lambda path: pickles.Pickle(
        {"ema": record}, "", Budget(1 << 30)))  # fmt: skip
    with pytest.raises(ValueError, match="positional arguments"):
        read(tmp_path / "a.pkl")

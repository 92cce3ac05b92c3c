"""Arguments of networks and encoders: what the originals accept, and what no network can have."""

import math

import numpy as np
import pytest
import torch
from golden_data import ruled_input, ruled_state

from erk.models import edm, edm2
from erk.models.arguments import MAX_IMAGE_MEMORY, check_levels
from erk.models.checkpoint import Checkpoint, Part, build, read, write_safetensors
from erk.models.encoders import (
    DecodeError,
    DigitsEncoder,
    PixelEncoder,
    PixelUnshuffleEncoder,
    VAEEncoder,
)
from erk.models.model import Model

SONG = {"img_resolution": 16, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet",
        "model_channels": 8, "channel_mult": [1, 2, 2], "num_blocks": 1, "attn_resolutions": [8],
        "resample_filter": [1, 3, 3, 1], "embedding_type": "fourier",
        "channel_mult_noise": 2}  # fmt: skip
EDM2 = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 8,
        "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8], "logvar_channels": 2,
        "channels_per_head": 8}  # fmt: skip
RGB = Part("StandardRGBEncoder", {})


def stored(name, kwargs, tensors, encoder=RGB):
    return build(Checkpoint(Part(name, kwargs), encoder, tensors, {}), "net.pkl")


def states_of(network, dtype=torch.float32):
    return {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}


# --- what the originals accept; the values are those of NVlabs/edm's own code


@pytest.mark.parametrize(("encoder", "decoder", "dtype", "values"), [
    ("standard", "standard", torch.float32, [-0.074613, -0.270008, 0.606879]),
    ("standard", "skip", torch.float32, [0.071443, -0.768413, 0.45187]),
    ("skip", "standard", torch.float32, [-0.075623, -0.245932, 0.600265]),
    ("skip", "skip", torch.float32, [0.041248, -0.491948, 0.537959]),
    ("residual", "skip", torch.float32, [0.053554, -0.757477, 0.50372]),
    ("skip", "skip", torch.float16, [0.041422, -0.492733, 0.537868]),  # 2 pi freqs in float16
    ("skip", "skip", torch.float64, [0.041248, -0.491948, 0.537959]),
])  # fmt: skip
def test_networks_with_skips_of_the_image(encoder, decoder, dtype, values):  # M20, kind 2
    kwargs = SONG | {"encoder_type": encoder, "decoder_type": decoder}
    shapes = {key: list(t.shape) for key, t in edm.EDMPrecond(**kwargs).state_dict().items()}
    state = ruled_state(shapes, "skip", "edm", kwargs["resample_filter"])
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    network, _ = stored("EDMPrecond", kwargs, state)
    D = network(ruled_input("skip", [2, 3, 16, 16], 0.8), torch.tensor(0.8))
    torch.testing.assert_close(
        D.flatten()[[0, 700, 1535]], torch.tensor(values), rtol=0, atol=3e-6
    )


def test_an_infinite_sigma_max_is_the_default(tmp_path):  # M20: JSON has no infinity
    from erk.io.pickles import Record
    from erk.models.checkpoint import _part

    kwargs = SONG | {"sigma_min": 0, "sigma_max": np.float64("inf")}
    part = _part(Record("EDMPrecond", {"_init_kwargs": kwargs}))
    network = edm.EDMPrecond(**SONG)
    checkpoint = Checkpoint(part, RGB, states_of(network), {})
    write_safetensors(tmp_path / "a.safetensors", checkpoint)
    assert build(read(tmp_path / "a.safetensors"), "a")[0].sigma_max == math.inf
    kwargs = SONG | {"sigma_max": math.inf}
    assert stored("EDMPrecond", kwargs, states_of(network))[0].sigma_max == math.inf
    with pytest.raises(ValueError, match="VEPrecond: sigma_max: Input should be a finite number"):
        stored("VEPrecond", kwargs, states_of(network))


@pytest.mark.parametrize("change", [
    {"logvar_channels": 0}, {"attn_resolutions": []}, {"attn_resolutions": None},
    {"channel_mult_noise": None, "channel_mult_emb": None}, {"dropout": None, "clip_act": None},
    {"channel_mult": (1, 1), "sigma_data": 1}, {"use_fp16": False}, {"num_blocks": 0},
    {"res_balance": 0.0, "attn_balance": 1, "concat_balance": 0.7}, {"channels_per_head": 64},
])  # fmt: skip
def test_arguments_of_edm2_that_are_legal(change):  # kind 2
    torch.manual_seed(0)
    kwargs = EDM2 | change
    network, _ = stored("Precond", kwargs, states_of(edm2.Precond(**kwargs)))
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 3.0])
    unfolded = network(x, sigma)
    network.fold()
    assert network(x, sigma).isfinite().all()
    torch.testing.assert_close(network(x, sigma), unfolded)
    assert network.log_variance(sigma).shape == (2, 1, 1, 1)


def test_no_channels_give_no_log_variance():  # M20: a division by zero
    network = edm2.Precond(**EDM2 | {"logvar_channels": 0})
    network.fold()
    assert network.log_variance(torch.ones(3)).tolist() == [[[[0.0]]]] * 3


def test_attention_may_be_unset():
    shapes = [set(edm.SongUNet(img_resolution=16, in_channels=3, out_channels=3, model_channels=8,
                               num_blocks=1, **kwargs).state_dict())
              for kwargs in ({}, {"attn_resolutions": [16]},
                             {"attn_resolutions": None})]  # fmt: skip
    assert shapes[0] == shapes[1] > shapes[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gains_of_double_precision(dtype):  # the original divides them in their type
    layer = edm2.MPConv(3, 4, [])
    layer.weight.data = torch.eye(4, 3) + 1
    gain = torch.tensor(1 / 3, dtype=dtype)
    unit = (torch.eye(4, 3) + 1) / ((torch.eye(4, 3) + 1).square().mean(1, keepdim=True).sqrt())
    applied = layer.effective_weight(gain)
    assert applied.dtype == torch.float32
    torch.testing.assert_close(applied, unit * ((1 / 3) / math.sqrt(3)), rtol=2e-4, atol=0)


def test_latents_are_standardized_to_lists_of_numbers():  # kind 2: final_mean of EDM2's encoder
    encoder = VAEEncoder(raw_mean=[1, 2, 3, 4], raw_std=[2, 2, 2, 4], final_mean=[1, 0, 0, 0],
                         final_std=[0.5, 1, 0.5, 0.5])  # fmt: skip
    assert encoder.scale.flatten().tolist() == [0.25, 0.5, 0.25, 0.125]
    assert encoder.bias.flatten().tolist() == [0.75, -1.0, -0.75, -0.5]
    one = VAEEncoder(raw_mean=2, raw_std=4)
    assert one.scale.flatten().tolist() == [0.125] and one.bias.flatten().tolist() == [-0.25]


# --- what no network has


@pytest.mark.parametrize(("change", "message"), [
    ({"channel_mult": [1, 0]}, "channel_mult.1: Input should be greater than or equal to 1, not 0"),
    ({"channel_mult": []}, "channel_mult: .* at least 1 item"),
    ({"channel_mult": [1.5]}, "channel_mult.0: Input should be a valid integer"),
    ({"channel_mult": [1] * 99}, "channel_mult: .* at most 16"),
    ({"channel_mult": "11"}, "channel_mult: "),
    ({"channels_per_head": -1}, "channels_per_head: Input should be greater than or equal to 1"),
    ({"channels_per_head": 0}, "channels_per_head: "),
    ({"model_channels": 10**9}, "model_channels: Input should be less than or equal to 1048576"),
    ({"model_channels": 1 << 20, "img_resolution": 64}, "one image takes .* more than 8.59 GB"),
    ({"img_channels": 0}, "img_channels: "),
    ({"img_channels": True}, "img_channels: Input should be a valid integer, not True"),
    ({"img_resolution": 4097}, "img_resolution: Input should be less than or equal to 4096"),
    ({"img_resolution": 7}, "img_resolution 7 cannot be halved 1 times"),
    ({"resample_filter": []}, "resample_filter: "),
    ({"resample_filter": [1.0] * 20_000}, "resample_filter: .* at most 64"),
    ({"resample_filter": [1, 2, 1]}, "resample_filter must have an even number of values"),
    ({"resample_filter": [1, -1]}, "whose sum is not 0"),
    ({"label_dim": None}, "label_dim: Input should be a valid integer, not null"),
    ({"sigma_data": "0.5"}, "sigma_data: Input should be a valid number, not '0.5'"),
    ({"sigma_data": 0}, "sigma_data: Input should be greater than 0"),
    ({"sigma_data": math.nan}, "sigma_data: "),
    ({"dropout": math.inf}, "dropout: "),
    ({"chanel_mult": [1]}, "chanel_mult: unknown key; did you mean channel_mult"),
    ({"in_channels": 3}, "in_channels: unknown key"),
])  # fmt: skip
def test_arguments_of_edm2_that_are_refused(change, message):  # M20
    with pytest.raises(ValueError, match=f"net.pkl does not fit .*'Precond': .*{message}"):
        stored("Precond", EDM2 | change, {})


@pytest.mark.parametrize(("name", "change", "message"), [
    ("EDMPrecond", {"model_type": "UNet"}, "model_type must be"),
    ("EDMPrecond", {"encoder_type": "x"}, "encoder_type must be 'standard' or 'skip' or"),
    ("EDMPrecond", {"sigma_max": 0.0}, "sigma_max: Input should be greater than 0"),
    ("EDMPrecond", {"model_channels": -8}, "model_channels: "),
    ("EDMPrecond", {"augment_dim": -1}, "augment_dim: "),
    ("EDMPrecond", {"resample_filter": []}, "resample_filter: "),
    ("EDMPrecond", {"img_resolution": 18}, "18 cannot be halved 2 times"),
    ("EDMPrecond", {"model_type": "DhariwalUNet"}, "unknown key"),
    ("VPPrecond", {"M": 0}, "M: "),
    ("VPPrecond", {"epsilon_t": 2}, "epsilon_t: "),
    ("iDDPMPrecond", {"M": 10**5}, "M must be between"),
])  # fmt: skip
def test_arguments_of_edm_that_are_refused(name, change, message):  # M20
    with pytest.raises(ValueError, match=message):
        stored(name, SONG | change, {})


def test_a_range_of_noise_levels_must_rise():  # M20
    kwargs = SONG | {"sigma_min": 2.0, "sigma_max": 1.0}
    with pytest.raises(ValueError, match="sigma_min 2 is not below sigma_max 1"):
        stored("VEPrecond", kwargs, states_of(edm.VEPrecond(**kwargs)))


def test_the_memory_of_one_image_is_bounded():  # M20
    check_levels(64, [448, 896, 1344, 1792], 3, [1, 1])  # EDM2-XXL takes 95 MB
    with pytest.raises(ValueError, match="one image takes 24.7 GB of activations"):
        check_levels(4096, [46], 1, [1, 1])  # 4 * 4096^2 * 46 * (2 + 6) bytes
    check_levels(4096, [MAX_IMAGE_MEMORY // (4 * 4096**2 * 8)], 1, [1, 1])


@pytest.mark.parametrize(("encoder", "message"), [
    (Part("DigitsEncoder", {"mean": "x", "std": 1.0}), "DigitsEncoder: mean: .* valid number"),
    (Part("DigitsEncoder", {"mean": [0.5], "std": 1.0}), "mean: "),
    (Part("DigitsEncoder", {"mean": None, "std": 1.0}), "mean: .*not null"),
    (Part("DigitsEncoder", {"mean": 0.1}), "std: missing: add it"),
    (Part("DigitsEncoder", {"mean": 0.1, "std": 0}), "std: Input should be greater than 0"),
    (Part("PixelUnshuffleEncoder", {"mean": 0, "std": 1, "factor": -2}), "factor: "),
    (Part("StabilityVAEEncoder", {"raw_std": [0, 1, 1, 1]}), "raw_std"),
    (Part("StabilityVAEEncoder", {"batch_size": 0}), "batch_size: "),
    (Part("StabilityVAEEncoder", {"final_mean": [math.nan]}), "final_mean"),
    (Part("StabilityVAEEncoder", {"vae_name": 5}), "vae_name: .* valid string"),
    (Part("StandardRGBEncoder", {"mean": 0}), "mean: unknown key"),
])  # fmt: skip
def test_arguments_of_encoders_that_are_refused(encoder, message):  # M20
    with pytest.raises(ValueError, match=f"net.pkl does not fit .*{message}"):
        stored("Precond", EDM2, states_of(edm2.Precond(**EDM2)), encoder)


@pytest.mark.parametrize(("channels", "encoder", "is_image"), [
    (3, PixelEncoder(), True), (1, PixelEncoder(), True), (5, PixelEncoder(), False),
    (4, VAEEncoder(), True), (3, VAEEncoder(), False), (3, DigitsEncoder(0, 1), False),
    (12, PixelUnshuffleEncoder(0, 1), True), (3, PixelUnshuffleEncoder(0, 1), False),
])  # fmt: skip
def test_samples_must_decode_to_images(channels, encoder, is_image):  # M20: img_channels 5
    network = edm2.Precond(**EDM2 | {"img_channels": channels})
    model = Model(network, encoder)
    if is_image:
        model.check_decodable()
    else:
        with pytest.raises(ValueError, match=f"have {channels} channels, but its .* decodes"):
            model.decode(torch.zeros(1, channels, 8, 8))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("encoder", "channels"), [
    (PixelEncoder(), 3), (DigitsEncoder(0, 1), 1), (PixelUnshuffleEncoder(0, 1), 4),
    (VAEEncoder(), 4),
])  # fmt: skip
def test_samples_that_are_not_finite_are_no_images(encoder, channels, value):  # M20: black images
    x = torch.zeros(3, channels, 8, 8)
    x[1, 0, 2, 3] = value
    with pytest.raises(DecodeError, match="the network returned NaN or infinity for sample 1 of"):
        encoder.decode(x)

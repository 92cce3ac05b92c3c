"""Cards that lack facts: what names and shapes of tensors tell, and what is refused."""

import json

import pytest
import torch
from golden_data import manifest, models, pickle_paths, shapes

from erk import load_model
from erk.models.checkpoint import Part, build, read, write_safetensors
from erk.models.shapes import ARGUMENTS, architecture_of, encoder_of, stripped

RELEASED = [name for name, facts in models()["architectures"].items() if facts["cls"] == "Precond"]


def tensors_of(name, dtype=torch.float16):
    return {k: torch.empty(s, dtype=dtype, device="meta") for k, s in shapes(name).items()}


def released_like(tmp_path, img=(3, 16), **card):
    """A small network with the settings that released networks have; its file and tensors."""
    kwargs = {"img_resolution": img[1], "img_channels": img[0], "label_dim": 5,
              "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1,
              "attn_resolutions": [8]}  # fmt: skip
    torch.manual_seed(0)
    from erk.models.edm2 import Precond

    state = {k: t.to(torch.float16) for k, t in Precond(**kwargs).state_dict().items()}
    checkpoint = read(pickle_paths("edm2_pixel")[0])._replace(
        architecture=Part("Precond", kwargs), tensors=state, metadata={}
    )
    path = tmp_path / "net.safetensors"
    write_safetensors(path, checkpoint)
    full = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card))
    return path, full


@pytest.mark.parametrize("name", RELEASED)
def test_released_networks_are_reported_by_their_shapes(name):
    part = architecture_of(tensors_of(name), {})
    expected = {k: d for k, d in ARGUMENTS.items() if k in part.kwargs}
    expected |= {**models()["architectures"][name]["kwargs"]}
    expected.pop("dropout")  # of training only
    assert part.kwargs | {"channel_mult": [*part.kwargs["channel_mult"]]} == expected | {
        key: [*expected[key]] for key in ("channel_mult", "attn_resolutions")
    }
    assert encoder_of(part).name == ("StandardRGBEncoder", "StabilityVAEEncoder")["512" in name]


@pytest.mark.parametrize("net", ["edm2_cond", "edm2_uncond", "edm2_pixel", "edm2_auto"])
def test_golden_networks_are_reported_but_for_what_no_shape_tells(net):
    checkpoint = read(pickle_paths(net)[0])
    report = manifest()["nets"][net]["init_kwargs"]
    silent = {k: v for k, v in report.items() if k not in architecture_of(
        tensors_of("edm2-img64-xs"), {}).kwargs}  # fmt: skip
    part = architecture_of(checkpoint.tensors, silent)
    network, _ = build(checkpoint._replace(architecture=part), net)
    original, _ = build(checkpoint, net)
    channels, res = part.kwargs["img_channels"], part.kwargs["img_resolution"]
    x, sigma = torch.randn(1, channels, res, res), torch.tensor(0.7)
    assert torch.equal(network(x, sigma), original(x, sigma))


def test_a_card_that_lacks_the_architecture_gives_the_same_network(tmp_path, capsys):
    path, full = released_like(tmp_path)
    lean = load_model(path)
    report = capsys.readouterr().err
    assert report.count("\n") == 1 and "shapes" in report and "clip_act" in report
    path.with_suffix(".json").write_text(json.dumps(full))
    complete = load_model(path)
    assert capsys.readouterr().err == ""
    x = torch.randn(2, *complete.sample_shape)
    labels = torch.tensor([1, 4])
    assert torch.equal(lean(x, 2.0, labels), complete(x, 2.0, labels))
    assert lean.label_dim == 5 and lean.network.use_fp16


def test_the_resolution_is_reported_whatever_the_order_of_names(tmp_path):
    """Files sort their tensors by name: 16x16 stands before 8x8, and before 64x64."""
    path, full = released_like(tmp_path, img=(3, 64))
    lean = load_model(path)
    path.with_suffix(".json").write_text(json.dumps(full))
    x, labels = torch.randn(1, 3, 64, 64), torch.tensor([2])
    assert torch.equal(lean(x, 1.0, labels), load_model(path)(x, 1.0, labels))


def test_arguments_beside_the_weights_go_first(tmp_path):
    """config.json as PyTorchModelHubMixin writes it: the constructor's arguments, flat."""
    path, _ = released_like(tmp_path)
    path.with_suffix(".json").unlink()
    config = {"sigma_data": 0.25, "channels_per_head": 32, "clip_act": 8, "torch_dtype": "float16"}
    path.with_name("config.json").write_text(json.dumps(config))
    network = load_model(path).network
    assert network.sigma_data == 0.25 and network.unet.enc["8x8_block0"].heads == 4
    assert network.unet.enc["8x8_block0"].clip == 8


def test_one_prefix_of_all_tensors_is_dropped():
    tensors = tensors_of("edm2-img512-xs")
    assert stripped({f"network.{k}": t for k, t in tensors.items()}).keys() == tensors.keys()
    mixed = {f"ema.{k}": t for k, t in tensors.items()} | {"step": torch.ones(1)}
    assert stripped(mixed).keys() == mixed.keys()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("unet.enc.16x16_block0.conv_res1.weight"), "not those of an EDM2 network"),
        (lambda t: t.pop("unet.out_conv.weight"), "not those of an EDM2 network"),
        (lambda t: t.clear(), "not those of an EDM2 network"),
    ],
)  # fmt: skip
def test_other_tensors_are_refused(tmp_path, change, reason):
    from safetensors.torch import load_file, save_file

    path, _ = released_like(tmp_path)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=reason) as error:
        load_model(path)
    assert "\n" not in str(error.value) and "net.json must name 'architecture'" in str(error.value)


def test_what_shapes_do_not_tell_is_asked_for(tmp_path):
    path, _ = released_like(tmp_path, img=(1, 16))
    with pytest.raises(ValueError, match="samples of 1 x 16 x 16 do not determine the encoder"):
        load_model(path)
    narrow = tensors_of("edm2-img512-xxs") | {
        "unet.dec.8x8_in0.attn_proj.weight": torch.empty(48, 48, 1, 1, device="meta")
    }
    with pytest.raises(ValueError, match="does not determine its heads: add channels_per_head"):
        architecture_of(narrow, {})
    for golden in ("edm_ddpmpp", "ve_ncsnpp"):  # EDM's preconditioners share all their names
        with pytest.raises(ValueError, match="not those of an EDM2 network"):
            architecture_of(read(pickle_paths(golden)[0]).tensors, {})

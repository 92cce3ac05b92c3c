"""The EDM networks against the released architectures and the original code's outputs."""

import json
import math

import pytest
import torch
from golden_data import (
    GOLDEN,
    manifest,
    models,
    pickle_paths,
    ref,
    ruled_input,
    ruled_state,
    shapes,
    tensor,
)

from erk.io import pickles
from erk.models import edm

NETS = ["edm_adm", "edm_ddpmpp", "edm_ncsnpp", "vp_ddpmpp", "ve_ncsnpp", "iddpm_adm"]
PICKLES = [path for net in NETS for path in pickle_paths(net)]
ARCHITECTURES = sorted(path.stem for path in (GOLDEN / "shapes").glob("*.json"))
ARCHITECTURES = [name for name in ARCHITECTURES if not name.startswith("edm2-")]
RULED = json.loads((GOLDEN / "ref" / "ruled_edm.json").read_text())

SMALL = dict(img_resolution=8, img_channels=3, channel_mult=[1, 1], num_blocks=1)
SONG = dict(SMALL, model_type="SongUNet", model_channels=8)
ADM = dict(SMALL, model_type="DhariwalUNet", model_channels=8)


def build(class_name, state, **kwargs):
    with torch.device("meta"):
        net = getattr(edm, class_name)(**kwargs)
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False)


@pytest.fixture(params=PICKLES, ids=lambda path: path.name)
def golden(request):
    """(name, record, network) of a golden pickle."""
    record = pickles.load(request.param)["ema"]
    net = build(record.class_name, dict(record.tensors()), **record.init_kwargs)
    return request.param.name.split(".")[0], record, net


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict_has_the_released_keys_and_shapes(name):
    architecture = models()["architectures"][name]
    with torch.device("meta"):
        net = getattr(edm, architecture["cls"])(**architecture["kwargs"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == shapes(name)
    assert sum(p.numel() for p in net.parameters()) == architecture["params"]


def test_all_released_architectures_are_covered():
    assert len(ARCHITECTURES) == 12


def test_denoises_as_the_original_at_every_sigma(golden):
    name, _, net = golden
    data, atols = ref(name), manifest()["nets"][name]["D"]["atol_per_sigma"]
    labels = tensor(data["D_labels"]) if "D_labels" in data else None
    for i, atol in enumerate(atols):
        x, sigma = tensor(data["D_x"][i]), tensor(data["D_sigmas"][i])
        D, expected = net(x, sigma, labels), tensor(data["D_out"][i])
        assert D.dtype == torch.float32
        torch.testing.assert_close(D, expected, rtol=0, atol=atol)
        torch.testing.assert_close(net(x, float(sigma), labels), D, rtol=0, atol=0)


def test_denoises_as_the_original_with_sigmas_labels_and_augmentation(golden):
    name, _, net = golden
    data, atols = ref(name), manifest()["nets"][name]["D"]["atol_per_sigma"]
    x, sigma = tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"])  # sigma 0.05 and 3
    labels = tensor(data["D_labels"]) if "D_labels" in data else None
    atol = torch.tensor([atols[2], atols[6]]).reshape(2, 1, 1, 1)

    def check(key, *arguments):
        error = (net(x, sigma, *arguments) - tensor(data[key])).abs()
        assert (error <= atol).all(), f"{key}: {(error / atol).max():.2f} of the tolerance"

    check("D_vec_out", labels)
    if "D_nolabel_out" in data:
        check("D_nolabel_out")
        check("D_nolabel_out", torch.zeros_like(labels))
    if "D_aug_out" in data:
        check("D_aug_out", None, tensor(data["D_aug_labels"]))


def test_blocks_are_set_as_recorded(golden):
    _, record, net = golden
    checked = [0, 0]

    def compare(record, module):
        if record.class_name == "GroupNorm":
            assert (module.num_groups, module.eps) == (
                record.state["num_groups"],
                record.state["eps"],
            )
            checked[0] += 1
        if record.class_name == "UNetBlock":
            assert module.num_heads == record.state["num_heads"]
            assert module.skip_scale == float(record.state["skip_scale"])
            assert (module.affine_outputs == 2) == record.state["adaptive_scale"]
            checked[1] += 1
        if record.class_name == "PositionalEmbedding":
            assert module.endpoint == record.state["endpoint"]
        for name, child in record.state.get("_modules", {}).items():
            if child is not None:
                compare(child, getattr(module, name))

    compare(record, net)
    assert checked[0] == sum(isinstance(m, edm.GroupNorm) for m in net.modules()) > 20
    assert checked[1] == sum(isinstance(m, edm.UNetBlock) for m in net.modules()) > 8


def test_preconditioner_attributes_are_those_recorded(golden):
    _, record, net = golden
    for key in ("img_resolution", "img_channels", "label_dim", "use_fp16"):
        assert getattr(net, key) == record.state[key]
    assert net.sigma_min == float(record.state["sigma_min"])
    assert net.sigma_max == pytest.approx(float(record.state["sigma_max"]), rel=2e-6)
    assert net.compute_dtype is None


def test_round_sigma_as_the_original(golden):
    name, _, net = golden
    given, expected = (tensor(ref(name)[f"round_sigma_{end}"]) for end in ("in", "out"))
    assert torch.equal(net.round_sigma(given), expected)
    assert net.round_sigma(given.reshape(5, 1)).shape == (5, 1)
    assert net.round_sigma(0.5).shape == ()


def test_vp_time_and_noise_level_as_the_original():
    net, data = edm.VPPrecond(**SONG), ref("vp_ddpmpp")
    t, sigma = tensor(data["sigma_of_t_in"]), tensor(data["sigma_of_t"])
    torch.testing.assert_close(net.sigma(t), sigma, rtol=1e-6, atol=0)
    inverse = tensor(data["sigma_inv_of_sigma"])
    torch.testing.assert_close(net.sigma_inv(sigma), inverse, rtol=1e-6, atol=0)
    assert float(net.sigma_inv(net.sigma(0.25))) == pytest.approx(0.25, rel=1e-6)


def test_iddpm_noise_levels_as_the_original():
    expected = tensor(ref("iddpm_adm")["u"])
    for path in pickle_paths("iddpm_adm"):
        assert torch.equal(dict(pickles.load(path)["ema"].tensors())["u"], expected)
    torch.testing.assert_close(edm.iddpm_levels(0.001, 0.008, 1000), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("name", ["edm_adm", "edm_ncsnpp"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
def test_compute_dtype_is_inside_the_network_only(name, dtype, atol):
    record, data = pickles.load(pickle_paths(name)[0])["ema"], ref(name)
    net = build(record.class_name, dict(record.tensors()), **record.init_kwargs)
    seen = []
    for module in (net.model, net.model.map_layer0):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    net.compute_dtype = dtype
    D = net(tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"]))
    assert seen == [dtype, torch.float32] and D.dtype == torch.float32
    expected = tensor(data.get("D_nolabel_out", data["D_vec_out"]))
    torch.testing.assert_close(D, expected, rtol=0, atol=atol)


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    net = edm.EDMPrecond(**ADM, label_dim=4)
    x, sigma, labels = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0]), torch.eye(4)[:3]
    together = net(x, sigma, labels)
    for i in range(3):
        alone = net(x[i : i + 1], sigma[i], labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_resampling_by_the_simple_filter_is_mean_and_nearest():
    x, taps = torch.randn(2, 3, 6, 6), edm.filter_taps([1, 1])
    torch.testing.assert_close(edm.halve(x, taps), torch.nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(
        edm.double(x, taps), x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"encoder_type": "x"},
            "encoder_type must be 'standard' or 'skip' or 'residual', not 'x'.",
        ),
        (
            {"decoder_type": "residual"},
            "decoder_type must be 'standard' or 'skip', not 'residual'.",
        ),
        ({"embedding_type": "x"}, "embedding_type must be 'positional' or 'fourier', not 'x'."),
        ({"model_type": "X"}, "model_type must be 'SongUNet' or 'DhariwalUNet', not 'X'."),
    ],
)
def test_refuses_what_no_network_has(change, sentence):
    with pytest.raises(ValueError) as error:
        edm.EDMPrecond(**(SONG | change))
    assert str(error.value) == sentence


def test_refuses_labels_of_another_width():
    net = edm.EDMPrecond(**ADM, label_dim=4)
    with pytest.raises(ValueError, match=r"labels must be \[B, 4\], not \[2, 3\]\."):
        net(torch.zeros(2, 3, 8, 8), 1.0, torch.zeros(2, 3))


def test_networks_without_labels_ignore_them():
    net = edm.EDMPrecond(**SONG)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x, 1.0), net(x, 1.0, torch.ones(2, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULED)
def test_released_size_with_weights_by_rule(name):
    case, data = RULED[name], ref("ruled_edm")
    kwargs, salt = case["kwargs"], case["salt"]
    state = ruled_state(shapes(name), salt, "edm", kwargs.get("resample_filter", [1, 1]))
    net = build(case["cls"], state, **kwargs)
    labels = None
    if kwargs["label_dim"]:
        labels = torch.eye(kwargs["label_dim"])[[case["class_idx"] % kwargs["label_dim"]]]
    size = (1, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"])
    for j, sigma in enumerate(case["sigmas"]):
        x = ruled_input(salt, size, sigma)
        D = net(x, sigma, labels)
        c_skip = 0.25 / (sigma**2 + 0.25)
        F = (D - c_skip * x) / (0.5 * sigma / math.sqrt(sigma**2 + 0.25))
        expected = tensor(data[f"{name}_s{j}_D_sub"])
        error = (D[:, :, ::4, ::4] - expected).abs().max()
        print(f"{name} sigma {sigma}: max error {error:.1e}")
        assert error <= 1e-4
        stats = torch.stack([D.mean(), D.std(), D.abs().max(), F.std()]).double()
        torch.testing.assert_close(stats, tensor(data[f"{name}_s{j}_stats"]), rtol=1e-4, atol=1e-4)

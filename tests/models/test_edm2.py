"""The EDM2 network against the released architectures and the original code's outputs."""

import json

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
from erk.models.edm2 import (
    Block,
    MPConv,
    MPFourier,
    Precond,
    aligned,
    mp_cat,
    mp_sum,
    normalize,
    resample,
)

NETS = ["edm2_cond", "edm2_uncond", "edm2_auto", "edm2_pixel"]
ARCHITECTURES = sorted(path.stem for path in (GOLDEN / "shapes").glob("edm2-*.json"))
RULED = json.loads((GOLDEN / "ref" / "ruled_edm2.json").read_text())


def build(state, **kwargs):
    with torch.device("meta"):
        net = Precond(**kwargs)
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(params=[p for net in NETS for p in pickle_paths(net)], ids=lambda p: p.name)
def golden(request):
    record = pickles.load(request.param)["ema"]
    return request.param.name.split(".")[0], build(dict(record.tensors()), **record.init_kwargs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict_has_the_released_keys_and_shapes(name):
    architecture = models()["architectures"][name]
    with torch.device("meta"):
        net = Precond(**architecture["kwargs"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == shapes(name)
    assert sum(p.numel() for p in net.parameters()) == architecture["params"]


def test_all_released_architectures_are_covered():
    assert len(ARCHITECTURES) == 14


@pytest.mark.parametrize("folded", [False, True])
def test_outputs_equal_the_originals(golden, folded):
    name, net = golden
    if folded:
        net.fold()
    data, atol = ref(name), manifest()["nets"][name]["D"]["atol"]
    labels = tensor(data["D_labels"]) if "D_labels" in data else None
    for x, sigma, out in zip(data["D_x"], data["D_sigmas"], data["D_out"], strict=True):
        error = net(tensor(x), torch.tensor(sigma), labels) - tensor(out)
        assert error.abs().max() <= atol
    x, sigma = tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"])
    assert (net(x, sigma, labels) - tensor(data["D_vec_out"])).abs().max() <= atol
    logvar = net.log_variance(tensor(data["D_sigmas"])).flatten()
    assert (logvar - tensor(data["D_logvar"]).flatten()).abs().max() <= atol


@pytest.mark.parametrize("name", [n for n in NETS if "D_soft_out" in ref(n)])
def test_missing_and_soft_labels_equal_the_originals(name):
    record = pickles.load(pickle_paths(name)[0])["ema"]
    net = build(dict(record.tensors()), **record.init_kwargs)
    data, atol = ref(name), manifest()["nets"][name]["D"]["atol"]
    x, sigma = tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"])
    assert (net(x, sigma, None) - tensor(data["D_nolabel_out"])).abs().max() <= atol
    soft = net(x, sigma, tensor(data["D_soft_labels"]))
    assert (soft - tensor(data["D_soft_out"])).abs().max() <= atol


def test_float16_gains_round_as_in_the_published_networks():
    """Upcasting a file on load is the classic fault: D moves by ten tolerances."""
    record = pickles.load(pickle_paths("edm2_cond")[0])["ema"]
    state = {key: value.float() for key, value in record.tensors()}
    data, atol = ref("edm2_cond"), manifest()["nets"]["edm2_cond"]["D"]["atol"]
    net = build(state, **record.init_kwargs)
    out = net(tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"]), tensor(data["D_labels"]))
    assert (out - tensor(data["D_vec_out"])).abs().max() > 3 * atol


@pytest.mark.slow
@pytest.mark.parametrize("name", RULED)
def test_released_sizes_by_rule_equal_the_originals(name):
    rule, data = RULED[name], ref("ruled_edm2")
    kwargs = rule["kwargs"]
    net = build(ruled_state(shapes(name), rule["salt"], "edm2"), **kwargs)
    net.fold()
    size = kwargs["img_resolution"]
    labels = None
    if kwargs["label_dim"]:
        index = torch.tensor([rule["class_idx"] % kwargs["label_dim"]])
        labels = torch.nn.functional.one_hot(index, kwargs["label_dim"]).float()
    for j, sigma in enumerate(rule["sigmas"]):
        x = ruled_input(rule["salt"], (1, kwargs["img_channels"], size, size), sigma)
        out = net(x, torch.tensor(sigma), labels)[:, :, ::4, ::4]
        assert (out - tensor(data[f"{name}_s{j}_D_sub"])).abs().max() <= 1e-4


def test_primitives_preserve_magnitude():
    torch.manual_seed(0)
    a, b = torch.randn(4, 64, 16, 16), torch.randn(4, 32, 16, 16)
    assert mp_sum(a, torch.randn_like(a), 0.3).std().item() == pytest.approx(1, abs=0.02)
    for t in (0.3, 0.5):
        assert mp_cat(a, b, t).square().mean().item() == pytest.approx(1, abs=0.02)
    rms = normalize(a * 7, [1]).square().mean(1).sqrt()
    assert torch.allclose(rms, torch.ones_like(rms), atol=1e-3)
    weight = MPConv(16, 8, [3, 3]).effective_weight()
    assert torch.allclose(weight.flatten(1).norm(dim=1), torch.ones(8), atol=1e-3)
    features = MPFourier(4096)(torch.tensor([0.3, -2.0]))
    assert features.square().mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "t"), [((4, 6), 0.5), ((4, 4), 0.3), ((4, 4), 0.5)])
def test_concatenation_without_gradients_has_the_same_bytes(dtype, layout, channels, t):
    """It writes both halves into one tensor, of the same memory layout."""
    a, b = (torch.randn(2, c, 3, 3).to(dtype, memory_format=layout) for c in channels)
    expected = mp_cat(a, b, t)
    with torch.inference_mode():
        both = mp_cat(a, b, t)
    assert torch.equal(both, expected) and both.stride() == expected.stride()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_concatenation_under_vmap(mode):
    a, b = torch.randn(3, 2, 4, 5, 5), torch.randn(3, 2, 6, 5, 5)
    with mode():
        both = torch.func.vmap(mp_cat, in_dims=(0, 0, None))(a, b, 0.5)
        expected = torch.stack([mp_cat(x, y, 0.5) for x, y in zip(a, b, strict=True)])
    assert torch.equal(both, expected)


def test_concatenation_without_private_parts_of_pytorch(monkeypatch):
    monkeypatch.delattr(torch._C._functorch, "peek_interpreter_stack")
    a, b = torch.randn(2, 2, 8, 4, 4).unbind()
    with torch.inference_mode():
        both = mp_cat(a, b, 0.3)
    assert torch.equal(both, mp_cat(a, b, 0.3))


def test_aligned_convolutions_are_the_same_network():
    """On CUDA in half precision 5 and 4 channels become 8; the network with them, on the CPU."""
    torch.manual_seed(0)
    network = Precond(8, 4, 0, model_channels=16, channel_mult=[1, 2], num_blocks=1,
                      attn_resolutions=[], channels_per_head=16).requires_grad_(False)  # fmt: skip
    network.unet.out_gain.fill_(1.0)
    network.fold()
    x = torch.randn(2, 4, 8, 8)
    expected = network(x, torch.tensor(1.0))
    for layer, shape in ((network.unet.enc["8x8_conv"], (16, 8)), (network.unet.out_conv, (8, 16))):
        layer.folded = aligned(layer.folded).contiguous(memory_format=torch.channels_last)
        assert layer.folded.shape[:2] == shape
    assert torch.allclose(network(x, torch.tensor(1.0)), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["down", "up"])
def test_short_cuts_of_the_box_filter_equal_the_general_filter(mode):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled = resample(x, mode, [2.0, 2.0])  # the same filter, but not spelt [1, 1]
    assert torch.allclose(resample(x, mode, [1, 1]), scaled, atol=1e-6)
    wide = resample(x, mode, [1, 3, 3, 1])
    assert wide.shape == scaled.shape and not torch.allclose(wide, scaled, atol=1e-2)


def test_activations_are_clipped_and_attention_needs_whole_heads():
    block = Block(8, 8, 4, flavor="dec", clip_act=0.5)
    assert block(torch.randn(1, 8, 4, 4) * 9, torch.zeros(1, 8)).abs().max() == 0.5
    assert Block(8, 8, 4, flavor="dec", attention=True).attn_qkv is None  # 8 // 64 = no head


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETS)
def test_float16_on_cuda_stays_near_the_float32_goldens(name):
    record = pickles.load(pickle_paths(name)[0])["ema"]
    net = build(dict(record.tensors()), **record.init_kwargs).cuda()
    net.fold()
    data = ref(name)
    labels = tensor(data["D_labels"]).cuda() if "D_labels" in data else None
    out = net(tensor(data["D_vec_x"]).cuda(), tensor(data["D_vec_sigma"]), labels).cpu()
    assert (out - tensor(data["D_vec_out"])).abs().max() <= 5e-3 * max(1, out.abs().max().item())

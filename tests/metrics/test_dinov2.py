"""DINOv2 against the official network's outputs, on weights given by a rule."""

import math

import numpy as np
import pytest
import timm
import torch
from golden_data import ref, ruled_random, tensor
from timm.layers import resample_abs_pos_embed

from metrics.extractors import dinov2, load_extractor
from metrics.extractors.resize import bicubic, imagenet_normalise
from metrics.extractors.weights import random_state

SMALL = "vit_small_patch14_dinov2"
SALT = "pubdino"
GOLDEN = "dinov2_vits14_ruled"
LIMIT = 1e-5  # of the largest feature; measured: 9e-7


def ruled(key, shape):
    """Section 7 of tests/golden/README.md."""
    r, end = ruled_random(SALT, key).standard_normal(shape), key.rpartition(".")[2]
    if key in ("pos_embed", "cls_token", "mask_token"):
        r *= 0.2 if key == "pos_embed" else 0.1
    elif end == "gamma":
        r = 0.5 + 0.1 * np.tanh(r)
    elif len(shape) >= 2:
        r /= math.sqrt(math.prod(shape[1:]))
    else:
        r = 0.1 * r + (end == "weight")
    return torch.from_numpy(r.astype(np.float32))


def sample_images(size):
    random = ruled_random(SALT, f"images:{size}x{size}")
    coarse = random.randint(0, 256, (3, 3, 8, 8))
    images = coarse.repeat(size // 8, 2).repeat(size // 8, 3)
    images = images + random.randint(-20, 21, (3, 3, size, size))
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def state():
    return {key: ruled(key, shape) for key, shape in dinov2.shapes(SMALL).items()}


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """A file with the official keys, `mask_token` among them."""
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(state | {"mask_token": ruled("mask_token", (1, 384))}, path)
    return str(path)


@pytest.mark.parametrize("name, kind", [("dinov2", "torch"), ("dinov2-pil", "pil")])
def test_features_are_the_official_networks(weights, name, kind):
    extractor = dinov2.load(name, weights=weights, architecture=SMALL)
    assert extractor.feature_dim == 384 and extractor.name == name
    for size in (512, 64):
        result = extractor(sample_images(size))
        expected, other = (
            tensor(ref(GOLDEN)[f"feat_{mode}_{size}"])
            for mode in (kind, "pil" if kind == "torch" else "torch")
        )
        assert (result.features - expected).abs().max() < LIMIT * expected.abs().max()
        assert (result.features - other).abs().max() > 50 * LIMIT * expected.abs().max()
        assert result.logits is None and result.spatial is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dinov2", "dinov2-pil"])
def test_cuda_gives_the_features_of_the_cpu_even_where_tf32_is_allowed(weights, name):
    """Float32 products and attention in another order round to 1e-5; TF32 would change 1e-3."""
    on_cpu, on_gpu = (
        dinov2.load(name, device, weights=weights, architecture=SMALL) for device in ("cpu", "cuda")
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        features = on_gpu(sample_images(64)).features
    finally:
        torch.set_float32_matmul_precision(before)
    expected = on_cpu(sample_images(64)).features
    assert features.is_cuda
    assert (features.cpu() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_position_table_is_the_official_one(state):
    table = dinov2.resample_positions(state["pos_embed"])
    assert table.shape == (1, 257, 384)
    expected = tensor(ref(GOLDEN)["pos_embed_16x16_first8"])
    torch.testing.assert_close(table[0, :, :8], expected, rtol=0, atol=1e-6)  # measured: equal


def test_timms_own_resampling_is_another_network(state):
    network = timm.create_model(SMALL, img_size=224, num_classes=0)
    table = resample_abs_pos_embed(state["pos_embed"], [16, 16])
    network.load_state_dict(state | {"pos_embed": table})
    with torch.no_grad():
        result = network.eval()(imagenet_normalise(bicubic(sample_images(64), 224)))
    expected = tensor(ref(GOLDEN)["feat_torch_64"])
    assert (result - expected).abs().max() > 0.01 * expected.abs().max()  # measured: 0.04


def test_table_of_another_image_size_is_refused(state, tmp_path):
    file = tmp_path / "timm224.pth"
    torch.save(state | {"pos_embed": dinov2.resample_positions(state["pos_embed"])}, file)
    message = r"timm224.pth holds pos_embed of shape \[1, 257, 384\], not \[1, 1370, 384\]"
    with pytest.raises(ValueError, match=message):
        dinov2.load(weights=str(file), architecture=SMALL)


def test_random_features_differ_between_images():
    network = dinov2.build(random_state(dinov2.shapes(SMALL), 0), SMALL)
    with torch.no_grad():
        features = network(imagenet_normalise(bicubic(sample_images(64), 224)))
    assert features.std(0).mean() > 0.1 * features.abs().mean()


@pytest.mark.slow  # 304 million weights
def test_large_network_has_1024_features():
    before = torch.get_rng_state()
    extractor = load_extractor("dinov2", weights="random:0")
    assert extractor.sha256 == "random:0"
    assert torch.equal(torch.get_rng_state(), before)
    features = extractor(sample_images(64)[:2]).features
    assert features.shape == (2, extractor.feature_dim) == (2, 1024)
    assert (features[0] - features[1]).abs().mean() > 0.1 * features.abs().mean()

"""VGG16 against torch-fidelity's with identical weights."""

import pytest
import torch
import torchvision
from torch_fidelity import feature_extractor_vgg16 as original

from metrics.extractors import load_extractor, vgg16
from metrics.extractors.weights import Weights, random_state, shapes_of

LIMIT = 1e-5  # of the largest feature; measured: 3.4e-6


def whole_network():
    with torch.device("meta"):
        return torchvision.models.vgg16(init_weights=False)


@pytest.fixture(scope="module")
def state():
    return random_state(shapes_of(whole_network()), 0)


@pytest.fixture
def ours(state, monkeypatch):
    def given(source, url, shapes, offline):
        assert (source, url, offline) == ("random:0", vgg16.url(), False)
        assert shapes == shapes_of(whole_network())
        return Weights(state, source)

    monkeypatch.setattr(vgg16, "load_weights", given)
    return load_extractor("vgg16", weights="random:0")


@pytest.fixture
def theirs(state, monkeypatch):
    network = whole_network()
    network.load_state_dict(state, assign=True)
    monkeypatch.setattr(original, "torchvision_load_pretrained_vgg16", lambda **kwargs: network)
    return original.FeatureExtractorVGG16("vgg16", ["fc2_relu"])


def sample_images(size):
    generator = torch.Generator().manual_seed(size)
    coarse = torch.randint(256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)


def test_features_are_torch_fidelitys(ours, theirs):
    for size in (32, 512):
        images = sample_images(size)
        with torch.no_grad():
            expected = theirs(images)[0]
        result = ours(images)
        assert result.features.shape == (2, ours.feature_dim) == (2, 4096)
        assert result.features.dtype == torch.float32
        assert result.logits is None and result.spatial is None
        assert (result.features - expected).abs().max() < LIMIT * expected.max()


@pytest.mark.gpu
def test_cuda_gives_the_features_of_the_cpu_even_where_tf32_is_allowed(ours):
    """Other algorithms of float32 convolutions round to 1e-5; TF32 would change 1e-3."""
    on_gpu = load_extractor("vgg16", "cuda", weights="random:0")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        features = on_gpu(sample_images(64)).features
    finally:
        torch.set_float32_matmul_precision(before)
    expected = ours(sample_images(64)).features
    assert features.is_cuda and (features.cpu() - expected).abs().max() < 1e-4 * expected.max()


def test_features_are_positive_and_differ_between_images(ours):
    features = ours(sample_images(64)[:, :1]).features
    assert features.min() == 0
    spread = (features[0] - features[1]).abs().mean()
    assert spread > 0.1 * features.mean()  # measured: 0.35


def test_published_file_is_torchvisions():
    assert torchvision.models.VGG16_Weights.IMAGENET1K_V1.url == vgg16.url()

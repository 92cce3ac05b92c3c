"""Inception against torch-fidelity's network with identical weights, and what all networks do."""

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as original

from erk.runtime.precision import NONE, tf32_only
from metrics.extractors import Outputs, inception, load_extractor
from metrics.extractors.network import NetworkExtractor

LIMIT = 1e-5  # of the largest absolute value; measured: 4.5e-6


@pytest.fixture(scope="module")
def state():
    return inception.calibrated_state(inception.shapes(), 0)


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def ours(weights):
    return load_extractor("inception", weights=weights)


@pytest.fixture(scope="module")
def theirs(weights):
    names = ["2048", "logits_unbiased"]
    return original.FeatureExtractorInceptionV3(
        "inception", names, feature_extractor_weights_path=weights
    )


def sample_images(size, n=2, seed=0):
    """Random patches with a little noise, uint8 [n, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(256, (n, 3, 8, 8), generator=generator)
    images = coarse.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    noise = torch.randint(-20, 21, images.shape, generator=generator)
    return (images + noise).clamp(0, 255).to(torch.uint8)


def apart(result, expected):
    """The largest difference in units of the largest value."""
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("size", [32, 512])
def test_features_logits_and_spatial_are_torch_fidelitys(ours, theirs, size):
    images, seen = sample_images(size), []
    hook = theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        pool3, logits = theirs(images)
    hook.remove()
    result = ours(images)
    assert result.features.shape == (2, ours.feature_dim) == (2, 2048)
    assert apart(result.features, pool3) < LIMIT
    assert apart(result.logits, logits) < LIMIT
    spatial = result.spatial.reshape(2, 17, 17, 7)  # TensorFlow's order
    assert apart(spatial, seen[0][:, :7].permute(0, 2, 3, 1)) < LIMIT
    assert {part.dtype for part in result} == {torch.float32}


def test_weights_have_the_keys_and_the_place_of_torch_fidelitys(theirs):
    expected = {
        key: tuple(value.shape)
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert inception.shapes() == expected
    assert inception.URL == original.URL_INCEPTION_V3


def test_logits_leave_the_bias_out(state, ours):
    images = sample_images(64, n=1)
    network = inception.build(state | {"fc.bias": torch.full((1008,), 7.0)})
    assert torch.equal(network(inception.prepare(images)).logits, ours(images).logits)


def test_random_features_differ_between_images(ours):
    noise = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3))
    images = torch.cat([sample_images(32), noise.to(torch.uint8)])
    features = ours(images).features
    spread = features.std(0)
    assert (spread > 0).float().mean() > 0.99  # measured: 1
    assert spread.mean() > 0.1 * features.mean()  # measured: 0.16


def test_random_weights_follow_from_their_seed_alone(state):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = inception.calibrated_state(inception.shapes(), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_grey_images_are_grey_in_colour(ours):
    grey = sample_images(64)[:, :1]
    assert torch.equal(ours(grey).features, ours(grey.repeat(1, 3, 1, 1)).features)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(ours, images):
    with pytest.raises(ValueError, match="the inception extractor takes uint8 images"):
        ours(images)


@pytest.fixture(params=["tf32", "ieee"])
def allowed(request):
    """What the caller allows; monkeypatch cannot undo these attributes."""
    owners = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [target.fp32_precision for target in owners]
    for target in owners:
        target.fp32_precision = request.param
    yield (request.param, request.param)
    for target, value in zip(owners, before, strict=True):
        target.fp32_precision = value


def switches():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    return matmul.fp32_precision, conv.fp32_precision


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="older torch: other switches"
)
def test_tf32_is_off_inside_and_as_before_outside(allowed):
    seen = []

    def network(x):
        seen.append(switches())
        return Outputs(x)

    NetworkExtractor("spy", 1, "", lambda x: x, network, "cpu")(sample_images(8))
    assert seen == [("ieee", "ieee")] and switches() == allowed
    with pytest.raises(KeyError), tf32_only(NONE):
        raise KeyError
    assert switches() == allowed


@pytest.mark.parametrize("name", ["inception", "digits"])
def test_in_bf16_features_stay_float32_and_near(name, weights):
    sources = {"inception": weights, "digits": None}
    images = sample_images(64) if name == "inception" else sample_images(8)[:, :1]
    fp32, bf16 = (
        load_extractor(name, weights=sources[name], precision=precision)
        for precision in ("fp32", "bf16")
    )
    for part, expected in zip(bf16(images), fp32(images), strict=True):
        if expected is not None:
            assert part.dtype == torch.float32
            assert 0 < apart(part, expected) < 0.05  # measured: 0.013 and 0.004
    with pytest.raises(ValueError, match="unknown precision 'fp8': choose one of fp32, tf32"):
        load_extractor(name, weights=sources[name], precision="fp8")


@pytest.mark.gpu
def test_cuda_gives_the_features_of_the_cpu_even_where_tf32_is_allowed(weights, ours):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        result = load_extractor("inception", "cuda", weights)(sample_images(64))
    finally:
        torch.set_float32_matmul_precision(before)
    for part, expected in zip(result, ours(sample_images(64)), strict=True):
        assert part.is_cuda and apart(part.cpu(), expected) < 1e-4

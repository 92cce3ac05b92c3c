"""The resizes of the protocols against TensorFlow's rule, torch-fidelity and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x,
)
from torchvision.transforms.functional import normalize

from metrics.extractors.resize import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    bicubic,
    bicubic_fixed_point,
    bicubic_pil,
    bilinear_tf1,
    imagenet_normalise,
)


def noise(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("size", [299, 224])
@pytest.mark.parametrize("height, width", [(512, 512), (32, 32), (65, 301), (299, 224), (1, 1)])
def test_bilinear_tf1_has_the_bits_of_torch_fidelity(height, width, size):
    images = noise(2, 3, height, width)
    expected = interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(size, size), align_corners=False
    )
    assert torch.equal(bilinear_tf1(images, size), expected)


def test_bilinear_tf1_looks_at_i_times_w_over_size():
    image = torch.tensor([[[[0, 100], [200, 40]]]], dtype=torch.uint8)
    first, second = [0, 50, 100, 100], [200, 120, 40, 40]
    middle = [100, 85, 70, 70]
    assert bilinear_tf1(image, 4).tolist() == [[[first, middle, second, second]]]
    row = torch.arange(8, dtype=torch.uint8).expand(1, 1, 8, 8)
    assert bilinear_tf1(row, 2)[0, 0, 0].tolist() == [0, 4]  # no antialiasing


def test_float_bicubic_is_pillows_without_rounding_and_clipping():
    images = noise(3, 3, 96, 64)
    smooth = bicubic(images, 224)
    assert smooth.min() < -20 and smooth.max() > 275  # measured: -40, 299
    pale = images // 2 + 64  # far enough from 0 and 255 for Pillow not to clip
    difference = bicubic(pale, 224) - bicubic_pil(pale, 224).float()
    assert 0.4 < difference.abs().max() < 1.5  # measured: 1.07; it rounds twice


def test_bicubic_antialiases():
    stripes = (torch.arange(512) % 2 * 255).to(torch.uint8).expand(1, 3, 512, 512)
    for resize in (bicubic, bicubic_pil):
        inner = resize(stripes, 224)[..., 20:-20].float()
        assert (inner - 127.5).abs().max() < 1  # measured: 0.65; without antialiasing 124


def test_bicubic_pil_is_pillow_per_image():
    images = noise(2, 3, 40, 24)
    result = bicubic_pil(images, 16)
    assert result.dtype == torch.uint8 and result.shape == (2, 3, 16, 16)
    second = Image.fromarray(images[1].permute(1, 2, 0).numpy())
    expected = np.asarray(second.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(result[1].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [224, 16])
@pytest.mark.parametrize("side", [512, 300, 225, 224, 223, 64, 32, 17, 1])
def test_on_a_gpu_every_bit_is_pillows(side, size):
    """The GPU's way, here on the CPU: noise, and edges of black and white that overshoot."""
    edges = noise(2, 3, side, side) // 128 * 255
    for images in (noise(2, 3, side, side), edges):
        assert torch.equal(bicubic_fixed_point(images, size), bicubic_pil(images, size))


@pytest.mark.gpu
def test_a_gpu_resizes_there_to_the_same_values():
    for images in (noise(4, 3, 512, 512), noise(2, 3, 300, 40)):
        for resize in (bilinear_tf1, bicubic_pil):
            assert torch.equal(resize(images.cuda(), 224).cpu(), resize(images, 224))
    images = noise(4, 3, 512, 512)
    apart = bicubic(images.cuda(), 224).cpu() - bicubic(images, 224)
    assert apart.abs().max() < 1e-3


def test_imagenet_normalise():
    images = noise(2, 3, 5, 7)
    expected = normalize(images.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(
        imagenet_normalise(images), expected, rtol=0, atol=1e-6
    )  # measured: 2.4e-7
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406) and IMAGENET_STD == (0.229, 0.224, 0.225)

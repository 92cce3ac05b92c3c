"""The decoder of Stability's VAE, against diffusers."""

import pytest
import torch
from diffusers import AutoencoderKL

from erk.models import compiling
from erk.models.encoders import VAEEncoder
from erk.models.vae import Decoder, pixels_of

SMALL = {"block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D"] * 2,
         "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1,
         "latent_channels": 4}  # fmt: skip


def autoencoder(**more):
    torch.manual_seed(0)
    return AutoencoderKL(**(SMALL | more)).eval().requires_grad_(False)


def latents(n=3):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("more", [
    {},
    {"use_post_quant_conv": False},
    {"mid_block_add_attention": False},
    {"latent_channels": 4, "block_out_channels": [32, 32]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_bit_is_that_of_diffusers(more, dtype, layout):
    vae = autoencoder(**more)
    vae.to(dtype=dtype, memory_format=layout)
    with torch.inference_mode():
        expected = vae.decode(latents().to(dtype)).sample
        image = Decoder(vae)(latents().to(dtype))
    assert torch.equal(image, expected) and image.shape == (3, 3, 16, 16)


def test_a_decoder_of_other_blocks_is_refused():
    vae = autoencoder(up_block_types=["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])
    with pytest.raises(ValueError, match="a VAE with AttnUpDecoderBlock2D is not supported: give"):
        Decoder(vae)


def test_pixels_are_truncated_and_the_peak_of_each_image_is_kept():
    image = torch.zeros(4, 3, 2, 2)
    image[0, 0], image[1, 2, 1, 1], image[2, 1, 0, 0] = 0.999, -torch.inf, torch.nan
    pixels, peaks = pixels_of(lambda x: x, image)
    assert pixels.dtype == torch.uint8 and pixels[0, 0, 0, 0] == 254 and pixels[3].max() == 0
    assert peaks.isfinite().tolist() == [True, False, False, True]


def test_the_result_of_a_graph_may_be_overwritten_by_the_next_call(monkeypatch):
    """As CUDA graphs do: all calls return the same memory."""
    encoder = VAEEncoder(batch_size=2)
    encoder.vae = autoencoder()  # not called
    same = torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.zeros(2)

    def graph(vae, part):
        same[0].add_(1)
        same[1].add_(1)
        return same

    encoder._pixels_of = graph
    assert encoder.decode(torch.zeros(5, 4, 2, 2))[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 3]


@pytest.mark.slow
def test_a_compiled_decoder_rounds_otherwise_and_no_more(tmp_path):
    fault = compiling.compiler_fault(torch.device("cpu"))
    if fault is not None:
        pytest.skip(fault)
    autoencoder().save_pretrained(tmp_path)
    images = []
    for compiled in (False, True):
        encoder = VAEEncoder(str(tmp_path), batch_size=2, offline=True)
        encoder.compiled = compiled
        images.append(encoder.decode(latents()).int())
    assert (images[0] - images[1]).abs().max() <= 1
    weight = encoder.vae.layers.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_decoder_is_one_graph():
    """Compiled with the options of a GPU, which refuse a function that falls into two graphs."""
    from torch._dynamo.testing import CompileCounter

    counter, vae = CompileCounter(), Decoder(autoencoder())
    function = torch.compile(pixels_of, fullgraph=True, dynamic=False, backend=counter)
    with torch.inference_mode():
        pixels, _ = function(vae, latents())
        assert torch.equal(pixels, pixels_of(vae, latents())[0])
    assert counter.frame_count == 1

"""Encoders: pixels, latents of a VAE, digits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_data import pickle_paths, ref, tensor
from stored_networks import sentence

from erk import load_model
from erk.models.encoders import DigitsEncoder, PixelEncoder, VAEEncoder

ROOT = Path(__file__).parents[2]


def test_pixels_equal_the_originals():
    data = ref("images")
    runs = [key.removesuffix("_float") for key in data if key.endswith("_float")]
    assert len(runs) == 5
    for run in runs:
        pixels = PixelEncoder().decode(tensor(data[f"{run}_float"]))
        assert torch.equal(pixels, tensor(data[f"{run}_uint8"]))


def test_pixels_are_clipped_and_truncated():
    values = torch.tensor([-9, -1.0, 0.0, 0.9999, 1, 9])
    assert PixelEncoder().decode(values).tolist() == [0, 0, 128, 255, 255, 255]
    assert PixelEncoder().decode(torch.tensor([0.0078])).item() == 128  # 128.99


class StandInVAE:
    """The decoder with which the golden file was written; stores what it receives."""

    def __init__(self):
        self.seen = []

    def to(self, device):
        return self

    def __call__(self, x):
        self.seen.append(x)
        return x[:, :3] * 0.25 + 0.5


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_latents_are_scaled_as_by_the_originals(batch_size):
    data, encoder = ref("vae_io"), VAEEncoder(batch_size=batch_size)
    encoder.vae = StandInVAE()
    assert torch.equal(encoder.scale.flatten(), tensor(data["scale"]))
    assert torch.equal(encoder.bias.flatten(), tensor(data["bias"]))
    pixels = encoder.decode(tensor(data["latents"]))
    assert [len(part) for part in encoder.vae.seen] == {1: [1, 1, 1], 2: [2, 2], 8: [3]}[batch_size]
    assert torch.equal(torch.cat(encoder.vae.seen)[:3], tensor(data["vae_input"]))
    assert torch.equal(pixels, tensor(data["uint8"]))


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A small AutoencoderKL with random weights, as diffusers saves it."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return folder


def test_a_saved_vae_decodes_in_mini_batches(vae_folder):
    from diffusers import AutoencoderKL

    latents = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    encoder = VAEEncoder(vae_name=str(vae_folder), batch_size=7, offline=True)
    at_once = encoder.decode(latents)
    assert at_once.dtype == torch.uint8 and at_once.shape == (7, 3, 16, 16)
    assert at_once.float().std() > 5  # not an image of one grey
    for batch_size in (1, 3):
        encoder.batch_size = batch_size
        change = (encoder.decode(latents).int() - at_once.int()).abs()
        assert change.max() <= 1 and (change > 0).float().mean() <= 1e-3
    vae = AutoencoderKL.from_pretrained(vae_folder, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        raw = (latents - encoder.bias) / encoder.scale
        expected = (vae.decode(raw).sample.clamp(0, 1) * 255).to(torch.uint8)
    assert torch.equal(at_once, expected)


def test_a_model_takes_the_folder_of_its_vae(vae_folder):
    model = load_model(pickle_paths("edm2_cond")[0], vae=str(vae_folder), offline=True)
    assert model.decode(torch.zeros(2, *model.sample_shape)).shape == (2, 3, 32, 32)


def test_a_vae_that_is_not_there_is_named(vae_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken"
    shutil.copytree(vae_folder, broken)
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name in (str(tmp_path / "none"), "owner/not-cached", str(tmp_path), str(broken)):
        encoder = VAEEncoder(vae_name=name, offline=True)
        with pytest.raises(OSError, match=f"the VAE '{name}' could not be loaded") as error:
            encoder.decode(torch.zeros(1, 4, 2, 2))
        assert "--vae" in sentence(error)


def test_diffusers_is_not_imported_before_decode():
    code = (
        "import sys, torch, erk; m = erk.load_model(sys.argv[1]);"
        "m(torch.zeros(1, *m.sample_shape), 1.0); print(type(m.encoder).__name__,"
        "[name for name in ('diffusers', 'transformers', 'huggingface_hub', 'requests')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pickle_paths("edm2_cond")[0])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "VAEEncoder []", done.stderr


def test_digits_survive_encode_and_decode():
    encoder = DigitsEncoder(mean=-0.3895, std=0.7521)
    levels = torch.arange(17.0).reshape(1, 1, 1, 17)
    encoded = encoder.encode(levels)
    assert encoded.dtype == torch.float32
    pixels = encoder.decode(encoded)
    assert pixels.dtype == torch.uint8
    assert torch.equal((pixels.float() * 16 / 255).round(), levels)  # what the extractor reads
    assert ((pixels.float() - levels * 255 / 16).abs() <= 1).all()
    assert pixels.flatten()[0] == 0 and pixels.flatten()[16] >= 254
    assert encoder.decode(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_digits_are_standardised():
    from sklearn.datasets import load_digits

    encoder = load_model("digits").encoder
    encoded = encoder.encode(torch.tensor(load_digits().images))
    assert encoded.mean().item() == pytest.approx(0, abs=1e-3)
    assert encoded.std().item() == pytest.approx(0.5, abs=1e-3)

"""Non-finite numbers stop a run with one sentence; images agree between precisions."""

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from erk import load_model
from erk.commands.generate import main
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.models.checkpoint import read, write_safetensors
from erk.models.encoders import DecodeError, VAEEncoder
from erk.models.presets import find_preset
from scripts.bench import precision

JOB = ["--seeds", "7-9", "--steps", "4", "--batch", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """The digits network with activations near 1e6, which float32 and bfloat16 hold."""
    path = tmp_path_factory.mktemp("loud") / "loud.safetensors"
    digits = read(Path(find_preset("digits").net))
    gain = "unet.dec.8x8_block1.emb_gain"
    write_safetensors(path, digits._replace(tensors=digits.tensors | {gain: torch.tensor(1e6)}))
    return str(path)


def run(*arguments):
    """The command's end, without a traceback."""
    done = CliRunner().invoke(main, [*JOB, *arguments])
    assert "Traceback" not in done.output
    return done


WAYS = {
    "plain": [],
    "guide": ["--gnet", "{}", "--guidance", "1.5"],
    "erk": ["--w-stiff", "1", "--w-con", "0"],
    "auto": ["--erk", "auto"],
    "adaptive": ["--adaptive-tau", "0.1"],
    "corrector": ["--pc-snr", "0.1"],
    "churn": ["--S-churn", "4"],
    "multistep": ["--solver", "dpmpp", "--schedule", "logsnr"],
    "streamed": ["--evaluate", "digits", "--json", "row.json"],
}


@pytest.mark.parametrize("way", WAYS)
def test_float16_that_overflows_stops_with_seed_step_and_sigma(way, loud, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    more = [word.format(loud) for word in WAYS[way]]
    network = ["--preset", "digits"] if way == "guide" else ["--net", loud]
    done = run(*network, *more, "--precision", "fp16")
    assert done.exit_code == 2, done.output
    message = done.stderr.splitlines()[-1]
    error = "Error: the network gave NaN or infinity for seed 7 at step 0 (sigma 8"
    assert message.startswith(error)
    assert message.endswith("use bfloat16 or float32, by command --precision bf16 or fp32")
    assert not Path("out").exists() and not Path("row.json").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_proposed_precision_works(precision, loud, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--net", loud, "--precision", precision).exit_code == 0


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        (3e38, "for seed 7 at step 0 (sigma 80); check the weights"),  # outputs overflow
        (float("nan"), "unet.out_gain holds NaN or infinity"),
    ],
)
def test_weights_that_give_no_numbers(gain, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = read(Path(find_preset("digits").net))
    tensors = digits.tensors | {"unet.out_gain": torch.tensor(gain)}
    write_safetensors(tmp_path / "bad.safetensors", digits._replace(tensors=tensors))
    done = run("--net", "./bad.safetensors")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not Path("out").exists()


class NaNForSecond:
    """A VAE whose second image of a batch has this value in one pixel."""

    def __init__(self, value):
        self.value = value

    def __call__(self, latents):
        images = latents[:, :3].repeat(1, 1, 8, 8)
        images[1:2, 0, 0, 0] = self.value
        return images

    def to(self, device):
        return self


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_decoder_that_gives_nan_names_the_seed(value):
    """Casting to uint8 would make a colour of it that nobody notices."""
    encoder = VAEEncoder("a/vae")
    encoder.vae = NaNForSecond(value)
    with pytest.raises(DecodeError, match="VAE 'a/vae' returned NaN or infinity for sample 1 of"):
        encoder.decode(torch.zeros(3, 4, 2, 2))
    model = load_model("digits")
    model.decode = lambda x0: encoder.decode(x0.repeat(1, 4, 1, 1))
    with pytest.raises(DecodeError, match="for seed 41; check its weights"):
        list(generate(Job(model, Settings(steps=2), seeds=[40, 41], batch=2)))


MEAN = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.6}  # grey levels; docs/reliability.md


def mean_difference(variant, n=32):
    """Mean difference from float32 on the CPU, in grey levels, of images with ERK-Guid."""
    settings = Settings(**precision.SAMPLERS["ERK-Guid"])
    usual = precision.Variant("cpu", "fp32", 32)
    there, here = (precision.sample(one, settings, n) for one in (variant, usual))
    return precision.difference(there, here)["mean"]


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_precision_changes_images_by_less_than_a_grey_level(kind):
    assert 0 < mean_difference(precision.Variant("cpu", kind, 32)) < MEAN[kind]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MEAN)
def test_a_gpu_changes_images_by_no_more_than_the_precision_does(kind):
    assert mean_difference(precision.Variant("cuda", kind, 32)) < MEAN[kind]


def test_differences_are_counted_in_grey_levels():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    other = images.clone()
    other[0, 0, 0, :2] = torch.tensor([255, 1])
    assert precision.difference(images, other) == {
        "pixels that differ": 2 / 128, "mean": 2.0, "99.9 %": pytest.approx(222.742), "max": 255,
    }  # fmt: skip

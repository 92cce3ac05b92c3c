"""EDM2 networks with random weights, their work per call, and the roofline of a device."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from erk.models.checkpoint import Checkpoint, Part, write_safetensors
from erk.models.edm2 import Precond
from scripts.bench.checkouts import earlier_class, peer_module
from scripts.bench.counting import Traffic
from scripts.bench.paired import Row, synchronize

CHANNELS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
TINY = {"img_resolution": 8, "label_dim": 10, "model_channels": 64, "channel_mult": [1, 2],
        "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
       "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 256,
       "down_block_types": ["DownEncoderBlock2D"] * 4,
       "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
"""Configuration of Stability's VAE for diffusers."""
SIZES = ("tiny", *CHANNELS)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COPIES = 8

SIZE = click.option("--size", type=click.Choice(SIZES), default="xs", help="Size of the network.")
PRECISION = click.option("--precision", type=click.Choice(list(PRECISIONS)), default="bf16")
STEPS = click.option("--steps", default=4, help="Intervals of the schedule.")
LATENT = click.option("--latent", is_flag=True, help="512 pixels through the VAE, else 64 pixels.")
BATCH = click.option("--batch", default=4, help="Images per batch.")


def kwargs_of(size: str, latent: bool = True) -> dict[str, Any]:
    """Return the constructor arguments of EDM2's released network for latents or pixels."""
    released = {"img_resolution": 64, "label_dim": 1000, "model_channels": CHANNELS.get(size)}
    shape = TINY if size == "tiny" else released
    return shape | {"img_channels": 4 if latent else 3, "use_fp16": True}


def random_weights(network: torch.nn.Module, device: str) -> dict[str, Tensor]:
    """Draw unit normal float16 weights on a device, keyed as in the released files; gains are 0.4.

    Gains are initialised to 0, which would hide most of the network; trained ones are near 0.4.
    Networks with the same keys and shapes get the same weights.
    """
    draw = torch.Generator(device).manual_seed(0)

    def tensor(shape: torch.Size) -> Tensor:
        if not shape:
            return torch.tensor(0.4, device=device)
        return torch.randn(shape, generator=draw, device=device)

    return {name: tensor(value.shape).half() for name, value in network.state_dict().items()}


def our_network(size: str, precision: str, device: str, latent: bool = True) -> Precond:
    """Build our network as `erk.load_model` does."""
    with torch.device("meta"):
        network = Precond(**kwargs_of(size, latent))
    network.load_state_dict(random_weights(network, device), assign=True)
    network.to(device).eval().requires_grad_(False)
    network.compute_dtype = PRECISIONS[precision]
    network.fold()
    return network


def write_network(folder: Path, size: str, latent: bool, device: str) -> Path:
    """Write a random network to a file for `erk generate --net`, and return its path."""
    kwargs = kwargs_of(size, latent)
    with torch.device("meta"):
        network = Precond(**kwargs)
    encoder = Part("StabilityVAEEncoder" if latent else "StandardRGBEncoder", {})
    path = folder / f"{size}.safetensors"
    weights = {name: x.cpu() for name, x in random_weights(network, device).items()}
    write_safetensors(path, Checkpoint(Part("Precond", kwargs), encoder, weights, {}))
    return path


def earlier_network(
    commit: str, size: str, precision: str, fold: bool, device: str
) -> torch.nn.Module:
    """Build our network as an earlier commit defines it."""
    network = earlier_class(commit, "erk.models.edm2", "Precond")(**kwargs_of(size))
    network.load_state_dict(random_weights(network, device), assign=True)
    network.to(device).eval().requires_grad_(False).compute_dtype = PRECISIONS[precision]
    if fold:
        network.fold()
    return network


def peer_network(peer: Path, size: str, device: str, latent: bool = True) -> torch.nn.Module:
    """Build the peer's network with the same weights as ours."""
    network = peer_module(peer, "training.networks_edm2").Precond(**kwargs_of(size, latent))
    network.load_state_dict(random_weights(network, device), assign=True)
    return network.to(device).eval().requires_grad_(False)


def write_vae(folder: Path, size: str) -> Path:
    """Write a VAE with random weights as a folder of diffusers, and return the folder."""
    from diffusers import AutoencoderKL

    small = {"block_out_channels": [32] * 4, "layers_per_block": 1} if size == "tiny" else {}
    torch.manual_seed(0)
    AutoencoderKL(**(VAE | small)).save_pretrained(folder / "vae")
    return folder / "vae"


def inputs(network: Any, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return noise [B, C, R, R] and one-hot labels [B, label_dim] for a network."""
    draw = torch.Generator().manual_seed(0)
    shape = (batch, network.img_channels, network.img_resolution, network.img_resolution)
    labels = torch.eye(network.label_dim)[torch.arange(batch) % network.label_dim]
    return torch.randn(shape, generator=draw).to(device), labels.to(device)


class Work(NamedTuple):
    """Work of one call of a network, independent of the machine."""

    flops: int
    bytes: int  # moved if every operation reads its inputs from memory and writes its outputs


def work_of(size: str, precision: str, batch: int, latent: bool = True) -> Work:
    """Count the work of one call on the meta device."""
    with torch.device("meta"):
        network = Precond(**kwargs_of(size, latent)).requires_grad_(False)
        network.compute_dtype = PRECISIONS[precision]
        network.fold()
        x = torch.empty(batch, network.img_channels, *2 * [network.img_resolution])
        labels = torch.empty(batch, network.label_dim)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as flops:
            network(x, torch.tensor(1.0), labels)
        with Traffic() as traffic:
            network(x, torch.tensor(1.0), labels)
    return Work(flops.get_total_flops(), traffic.bytes.total())


class Limits(NamedTuple):
    """Measured peak rates of a device: per second, on a CPU per CPU second."""

    flops: float  # of a product of square matrices
    bytes: float  # read and written by a copy


def limits(precision: str, device: str, tiny: bool) -> Limits:
    """Measure the peak rates in one precision, each as the best of several runs."""
    n = 256 if tiny else 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(PRECISIONS[precision])
    flops = 2 * n**3 / _shortest(lambda: a @ a, device)
    source = torch.zeros((1 if tiny else 64) * 2**20, device=device)
    target = torch.empty_like(source)
    moved = COPIES * 2 * source.numel() * source.element_size()
    return Limits(flops, moved / _shortest(lambda: _copy(source, target), device))


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy several times, because synchronizing with a GPU costs time itself."""
    for _ in range(COPIES):
        target.copy_(source)


def _shortest(code: Callable[[], Any], device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(8):
        start = clock()
        code()
        synchronize(device)
        times.append(clock() - start)
    return min(times)


def roofline(seconds: float, work: Work, best: Limits) -> Row:
    """Return columns that compare one call with the peak rates; `seconds` are CPU s on a CPU."""
    return {
        "GFLOP": work.flops / 1e9,
        "GB moved": work.bytes / 1e9,
        "TFLOP/s": work.flops / seconds / 1e12,
        "matmul TFLOP/s": best.flops / 1e12,
        "of matmul rate": work.flops / seconds / best.flops,
        "GB/s": work.bytes / seconds / 1e9,
        "copy GB/s": best.bytes / 1e9,
    }

"""What the benchmarks of networks share: random weights, a peer's checkout, and the roofline."""

import functools
import importlib
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from erk.models.checkpoint import Checkpoint, Part, write_safetensors
from erk.models.edm2 import Precond
from scripts.bench.paired import Row

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
TINY = {"img_resolution": 8, "label_dim": 10, "model_channels": 64, "channel_mult": [1, 2],
        "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
SIZES = ("tiny", *CHANNELS)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NOT_RUN = "peer not run"
COPIES = 8

SIZE = click.option("--size", "sizes", type=click.Choice(SIZES), multiple=True, default=("xs",),
                    help="Of EDM2's networks; may repeat.")  # fmt: skip
ONE_SIZE = click.option("--size", type=click.Choice(SIZES), default="xs",
                        help="Of EDM2's networks.")  # fmt: skip
PRECISION = click.option("--precision", type=click.Choice(list(PRECISIONS)), default="bf16")
STEPS = click.option("--steps", default=4, help="Intervals of the schedule.")
LATENT = click.option("--latent", is_flag=True, help="512 pixels through the VAE, else 64 pixels.")
BATCH = click.option("--batch", default=4, help="Images at a time.")


def _is_there(_: click.Context, __: click.Parameter, device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("this machine offers no device 'cuda'; use --device cpu.")
    return device


DEVICE = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu",
                      callback=_is_there)  # fmt: skip
PEER = click.option("--peer", type=click.Path(exists=True, file_okay=False, path_type=Path),
                    help="A checkout of NVlabs/edm2, which is then timed as well.")  # fmt: skip


def kwargs_of(size: str, latent: bool = True) -> dict[str, Any]:
    """Constructor's arguments of EDM2's released network, for latents [4] or pixels [3]."""
    of_size = TINY if size == "tiny" else {
        "img_resolution": 64, "label_dim": 1000, "model_channels": CHANNELS[size]
    }  # fmt: skip
    return of_size | {"img_channels": 4 if latent else 3, "use_fp16": True}


def random_weights(network: torch.nn.Module) -> dict[str, Tensor]:
    """Unit normal weights in the released type; gains, which start at 0, at a trained one's size.

    float16 numbers by the name of the released files, which a peer's network has as well.
    """
    draw = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(value.shape, generator=draw) if value.ndim else torch.tensor(0.4)).half()
        for name, value in network.state_dict().items()
    }


def our_network(size: str, precision: str, device: str, latent: bool = True) -> Precond:
    """As `erk.load_model` makes it of a file."""
    with torch.device("meta"):
        network = Precond(**kwargs_of(size, latent))
    network.load_state_dict(random_weights(network), assign=True)
    network.to(device).eval().requires_grad_(False)
    network.compute_dtype = PRECISIONS[precision]
    network.fold()
    return network


def write_network(folder: Path, size: str, latent: bool) -> Path:
    """A file of such a network, for `generate.py --net`."""
    kwargs = kwargs_of(size, latent)
    with torch.device("meta"):
        network = Precond(**kwargs)
    encoder = Part("StabilityVAEEncoder" if latent else "StandardRGBEncoder", {})
    path = folder / f"{size}.safetensors"
    weights = random_weights(network)
    write_safetensors(path, Checkpoint(Part("Precond", kwargs), encoder, weights, {}))
    return path


def earlier_network(
    commit: str, size: str, precision: str, fold: bool, device: str
) -> torch.nn.Module:
    """Our network as a commit had it. ValueError if there is no such commit."""
    network = _earlier_kind(commit)(**kwargs_of(size))
    network.load_state_dict(random_weights(network), assign=True)
    network.to(device).eval().requires_grad_(False).compute_dtype = PRECISIONS[precision]
    if fold:
        network.fold()
    return network


@functools.cache
def _earlier_kind(commit: str) -> Any:
    """The class of EDM2's networks in the whole package of that commit, under another name."""
    found = subprocess.run(["git", "-C", ROOT, "archive", commit, "erk"], capture_output=True)
    if found.returncode:
        raise ValueError(f"--against {commit}: {found.stderr.decode().strip()}.")
    name = f"erk_{commit}".replace(".", "_")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(folder, filter="data")
        Path(folder, "erk").rename(Path(folder, name))
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(f"{name}.models.edm2").Precond
        finally:
            sys.path.remove(folder)


def peer_module(peer: Path, name: str) -> ModuleType:
    """A module of the peer's checkout; ValueError, one sentence, if it is none."""
    if str(peer) not in sys.path:
        sys.path.insert(0, str(peer))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--peer {peer} is no checkout of NVlabs/edm2: {error}.") from error


def peer_network(peer: Path, size: str, device: str, latent: bool = True) -> torch.nn.Module:
    """The peer's own network, with the weights of ours."""
    kind = peer_module(peer, "training.networks_edm2").Precond
    network = kind(**kwargs_of(size, latent))
    network.load_state_dict(random_weights(network), assign=True)
    return network.to(device).eval().requires_grad_(False)


def inputs(network: Any, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Noise [B, C, R, R] and one-hot labels [B, label_dim]."""
    draw = torch.Generator().manual_seed(0)
    shape = (batch, network.img_channels, network.img_resolution, network.img_resolution)
    labels = torch.eye(network.label_dim)[torch.arange(batch) % network.label_dim]
    return torch.randn(shape, generator=draw).to(device), labels.to(device)


def done(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            seen = [x for x in tree_leaves((args, made)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in seen)
        return made


class Work(NamedTuple):
    """What one call of a network has to do, whatever the machine."""

    flops: int
    bytes: int  # moved if every operation reads its inputs from memory and writes its outputs


def work_of(size: str, precision: str, batch: int, latent: bool = True) -> Work:
    """Counted on a device without values, so of any size in no time."""
    with torch.device("meta"):
        network = Precond(**kwargs_of(size, latent)).requires_grad_(False)
        network.compute_dtype = PRECISIONS[precision]
        network.fold()
        x = torch.empty(batch, network.img_channels, *2 * [network.img_resolution])
        labels = torch.empty(batch, network.label_dim)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as flops:
            network(x, torch.tensor(1.0), labels)
        with _Traffic() as traffic:
            network(x, torch.tensor(1.0), labels)
    return Work(flops.get_total_flops(), traffic.bytes)


class Limits(NamedTuple):
    """What a device does at best, measured; per second, on a CPU per second that it worked."""

    flops: float  # of a product of square matrices
    bytes: float  # read and written by a copy


def limits(precision: str, device: str, tiny: bool) -> Limits:
    """The roofline in one precision: best of several runs."""
    n = 256 if tiny else 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(PRECISIONS[precision])
    flops = 2 * n**3 / _shortest(lambda: a @ a, device)
    source = torch.zeros((1 if tiny else 64) * 2**20, device=device)
    target = torch.empty_like(source)
    moved = COPIES * 2 * source.numel() * source.element_size()
    return Limits(flops, moved / _shortest(lambda: _copy(source, target), device))


def _copy(source: Tensor, target: Tensor) -> None:
    """Several times: waiting for a GPU takes a while itself."""
    for _ in range(COPIES):
        target.copy_(source)


def _shortest(code: Callable[[], Any], device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(8):
        start = clock()
        code()
        done(device)
        times.append(clock() - start)
    return min(times)


def roofline(seconds: float, work: Work, best: Limits) -> Row:
    """Columns that say how near to the device's limits a call is; CPU seconds on a CPU."""
    return {
        "GFLOP": work.flops / 1e9,
        "GB moved": work.bytes / 1e9,
        "TFLOP/s": work.flops / seconds / 1e12,
        "matmul TFLOP/s": best.flops / 1e12,
        "of matmul rate": work.flops / seconds / best.flops,
        "GB/s": work.bytes / seconds / 1e9,
        "copy GB/s": best.bytes / 1e9,
    }

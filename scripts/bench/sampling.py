"""generate.py from noise to pictures on the disk, against its peer: seconds per further picture.

    python -m scripts.bench.sampling            # minutes on one core
    python -m scripts.bench.sampling --device cuda --precision fp16 --size s --latent --batch 64 \
        --steps 32 --peer DIR                   # what the released EDM2-S does at 512 pixels

Writes results/bench/sampling.json and .md. Weights are random, of the released shapes; with
--latent so are the VAE's. What a run costs once, such as loading, cancels: every round makes one
batch and then four, and the difference counts. A run before warms up.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
import torch

from erk.commands import generate
from erk.commands.cli import CONTEXT, clean_exit
from erk.runtime.precision import RELEASED, tf32_only
from scripts.bench import networks
from scripts.bench.networks import BATCH, DEVICE, LATENT, NOT_RUN, ONE_SIZE, PEER, PRECISION, STEPS
from scripts.bench.paired import OUT, ROUNDS, THREADS, Row, quietly, report, use_threads

BATCHES = 3  # by which two runs differ; their difference counts
VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
       "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 256,
       "down_block_types": ["DownEncoderBlock2D"] * 4,
       "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
"""Shape of Stability's VAE, as diffusers spells it."""


class Case(NamedTuple):
    """What is timed."""

    size: str
    latent: bool
    precision: str
    device: str
    batch: int
    steps: int
    more: tuple[str, ...]  # further options of generate.py


def write_vae(folder: Path, size: str) -> Path:
    """A VAE with random weights."""
    from diffusers import AutoencoderKL

    small = {"block_out_channels": [32] * 4, "layers_per_block": 1} if size == "tiny" else {}
    torch.manual_seed(0)
    AutoencoderKL(**(VAE | small)).save_pretrained(folder / "vae")
    return folder / "vae"


def options_of(case: Case, folder: Path) -> list[str]:
    """Those of generate.py that do not depend on the number of pictures."""
    net = networks.write_network(folder, case.size, case.latent)
    vae = ["--vae", str(write_vae(folder, case.size)), "--offline"] if case.latent else []
    return ["--net", str(net), "--device", case.device, "--precision", case.precision,
            "--batch", str(case.batch), "--steps", str(case.steps), *vae, *case.more]  # fmt: skip


def ours(options: list[str], n: int) -> None:
    """generate.py in this process."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*options, "--seeds", f"0-{n - 1}", "--outdir", folder]
        quietly(lambda: generate.main(words, standalone_mode=False))
        assert len(list(Path(folder).glob("*.png"))) == n


def theirs(peer: Path, case: Case, folder: Path) -> Callable[[int], None]:
    """The peer's generate_images, with the weights of ours and its own settings.

    Those of PyTorch included: ours changes switches that the peer leaves as they are.
    """
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "29531", "RANK": "0",
                        "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():  # fmt: skip
        os.environ.setdefault(name, value)
    script = networks.peer_module(peer, "generate_images")
    networks.peer_module(peer, "torch_utils.distributed").init()
    encoders = networks.peer_module(peer, "training.encoders")
    net = networks.peer_network(peer, case.size, case.device, case.latent)
    encoder = encoders.StandardRGBEncoder()
    if case.latent:
        encoder = encoders.StabilityVAEEncoder(vae_name=str(folder / "vae"))

    def make(n: int) -> None:
        torch.backends.cudnn.deterministic = False
        with tempfile.TemporaryDirectory() as out, tf32_only(RELEASED):
            made = script.generate_images(
                net=net, encoder=encoder, outdir=out, seeds=range(n), max_batch_size=case.batch,
                verbose=False, device=torch.device(case.device), num_steps=case.steps,
            )  # fmt: skip
            for _ in made:
                pass
            assert len(list(Path(out).rglob("*.png"))) == n

    return make


def per_picture(
    make: Callable[[int], None], batch: int, device: str, further: int = BATCHES
) -> tuple[float, float]:
    """Seconds, and CPU seconds, per picture of `further` batches beyond the first."""
    seconds, cpu_seconds = [], []
    for batches in (1, 1 + further):
        start, cpu_start = time.perf_counter(), time.process_time()
        make(batches * batch)
        networks.done(device)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    n = further * batch
    return (seconds[1] - seconds[0]) / n, (cpu_seconds[1] - cpu_seconds[0]) / n


def rows_of(case: Case, found: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """One row per code."""
    network = networks.work_of(case.size, case.precision, case.batch, case.latent)
    best = networks.limits(case.precision, case.device, tiny=case.size == "tiny")
    calls = 2 * case.steps - 1
    work = networks.Work(*(part * calls // case.batch for part in network))
    told = {"size": case.size, "data": "latents" if case.latent else "pixels",
            "precision": case.precision, "batch": case.batch, "steps": case.steps}  # fmt: skip
    rows: list[Row] = []
    for name, times in found.items():
        wall, cpu = (list(column) for column in zip(*times, strict=True))
        first = [mine for mine, _ in found["ours"]]
        ratio = median(a / b for a, b in zip(wall, first, strict=True))
        figures = {"code": name, "s per picture": median(wall), "times ours": ratio,
                   "CPU s per picture": median(cpu), "all seconds": wall,
                   "all CPU s": cpu}  # fmt: skip
        seconds = median(wall if case.device == "cuda" else cpu)
        rows.append(told | figures | networks.roofline(seconds, work, best))
    if "peer" not in found:
        rows.append(told | {"code": NOT_RUN})
    return rows


@click.command(context_settings=CONTEXT)
@ONE_SIZE
@BATCH
@DEVICE
@PRECISION
@STEPS
@LATENT
@click.option("--with", "more", multiple=True, help="A further option of generate.py.")
@PEER
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(
    size: str, batch: int, device: str, precision: str, steps: int, latent: bool,
    more: tuple[str, ...], peer: Path | None, rounds: int, threads: int, out: Path,
) -> None:  # fmt: skip
    """Time generate.py per further picture."""
    use_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else generate.py takes one thread
    case = Case(size, latent, precision, device, batch, steps, more)
    with tempfile.TemporaryDirectory() as place:
        options = options_of(case, Path(place))
        makers = {"ours": lambda n: ours(options, n)}
        if peer is not None:
            makers["peer"] = theirs(peer, case, Path(place))
        for make in makers.values():
            make(batch)  # what the first of all runs costs
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        for _ in range(rounds):
            for name, make in makers.items():
                found[name].append(per_picture(make, batch, device))
    report("sampling", rows_of(case, found), [], out, device)


if __name__ == "__main__":
    main()

"""erk generate from noise to image files, against its peer: seconds per further image.

    python -m scripts.bench.sampling            # minutes on one core
    python -m scripts.bench.sampling --device cuda --precision fp16 --size s --latent --batch 64 \
        --steps 32 --peer DIR                   # the released EDM2-S at 512 pixels

Weights are random, with the released shapes; with --latent so are the VAE's. Costs that a run has
once, such as loading, cancel: every round samples one batch and then four, and the difference
counts. An untimed run warms up.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import torch

from erk.commands import generate
from erk.runtime.precision import RELEASED, tf32_only
from scripts.bench import networks
from scripts.bench.checkouts import NOT_RUN, PEER, peer_module
from scripts.bench.networks import BATCH, LATENT, PRECISION, SIZE, STEPS
from scripts.bench.paired import (
    Row,
    Runs,
    Setup,
    Timed,
    bench,
    in_turns,
    quietly,
    summary,
    synchronize,
)

FURTHER = 3  # timed batches beyond the first
Maker = Callable[[int], None]
"""Samples images of so many seeds and writes them to a temporary folder."""


class Case(NamedTuple):
    """Options of the timed commands."""

    size: str
    latent: bool
    precision: str
    device: str
    batch: int
    steps: int
    extra: tuple[str, ...] = ()  # further options of erk generate

    def columns(self) -> Row:
        """Return the options as columns of a row."""
        data = "latents" if self.latent else "pixels"
        return {"size": self.size, "data": data, "precision": self.precision,
                "batch": self.batch, "steps": self.steps}  # fmt: skip


def options_of(case: Case, folder: Path) -> list[str]:
    """Write the networks; return the options of erk generate, without seeds and folder."""
    net = networks.write_network(folder, case.size, case.latent, case.device)
    vae = []
    if case.latent:
        vae = ["--vae", str(networks.write_vae(folder, case.size)), "--offline"]
    return ["--net", str(net), "--device", case.device, "--precision", case.precision,
            "--batch", str(case.batch), "--steps", str(case.steps), *vae, *case.extra]  # fmt: skip


def ours(options: list[str], n: int) -> None:
    """Run erk generate in this process."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*options, "--seeds", f"0-{n - 1}", "--outdir", folder]
        quietly(lambda: generate.main(words, standalone_mode=False))
        assert len(list(Path(folder).glob("*.png"))) == n


def theirs(peer: Path, case: Case, folder: Path) -> Maker:
    """Return the peer's generate_images with the weights of ours and its default settings.

    It runs with PyTorch's TF32 switches as the peer leaves them.
    """
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "29531", "RANK": "0",
                        "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():  # fmt: skip
        os.environ.setdefault(name, value)
    script = peer_module(peer, "generate_images")
    peer_module(peer, "torch_utils.distributed").init()
    encoders = peer_module(peer, "training.encoders")
    net = networks.peer_network(peer, case.size, case.device, case.latent)
    encoder = encoders.StandardRGBEncoder()
    if case.latent:
        encoder = encoders.StabilityVAEEncoder(vae_name=str(folder / "vae"))

    def sample(n: int) -> None:
        torch.backends.cudnn.deterministic = False
        with tempfile.TemporaryDirectory() as out, tf32_only(RELEASED):
            batches = script.generate_images(
                net=net, encoder=encoder, outdir=out, seeds=range(n), max_batch_size=case.batch,
                verbose=False, device=torch.device(case.device), num_steps=case.steps,
            )  # fmt: skip
            for _ in batches:
                pass
            assert len(list(Path(out).rglob("*.png"))) == n

    return sample


def per_image(make: Maker, batch: int, device: str, further: int = FURTHER) -> Timed:
    """Return seconds and CPU seconds per image of `further` batches beyond the first."""
    seconds, cpu_seconds = [], []
    for batches in (1, 1 + further):
        start, cpu_start = time.perf_counter(), time.process_time()
        make(batches * batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    n = further * batch
    return None, (seconds[1] - seconds[0]) / n, (cpu_seconds[1] - cpu_seconds[0]) / n


def rows_of(case: Case, runs: dict[str, Runs]) -> list[Row]:
    """Return one row per code; their times are those of one image."""
    network = networks.work_of(case.size, case.precision, case.batch, case.latent)
    best = networks.limits(case.precision, case.device, tiny=case.size == "tiny")
    calls = 2 * case.steps - 1
    work = networks.Work(*(part * calls // case.batch for part in network))
    clock = "seconds" if case.device == "cuda" else "CPU s"
    rows = [
        case.columns() | {"code": name, "s per image": times["seconds"]} | times
        | networks.roofline(times[clock], work, best)
        for name, times in summary(runs).items()
    ]  # fmt: skip
    return rows if "peer" in runs else [*rows, case.columns() | {"code": NOT_RUN}]


@bench(
    SIZE, BATCH, PRECISION, STEPS, LATENT, PEER,
    click.option("--with", "extra", multiple=True, help="A further option of erk generate."),
)  # fmt: skip
def main(
    setup: Setup, size: str, batch: int, precision: str, steps: int, latent: bool,
    peer: Path | None, extra: tuple[str, ...],
) -> list[Row]:  # fmt: skip
    """Time erk generate per further image."""
    case = Case(size, latent, precision, setup.device, batch, steps, extra)
    with tempfile.TemporaryDirectory() as folder:
        codes: dict[str, Maker] = {"ours": partial(ours, options_of(case, Path(folder)))}
        if peer is not None:
            codes["peer"] = theirs(peer, case, Path(folder))
        for code in codes.values():
            code(batch)  # warm-up
        timed = partial(per_image, batch=batch, device=setup.device)
        return rows_of(case, in_turns(codes, setup.rounds, timed))


if __name__ == "__main__":
    main()

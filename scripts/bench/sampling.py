"""erk generate from noise to image files, against its peer: seconds per further image.

    python -m scripts.bench.sampling            # minutes on one core
    python -m scripts.bench.sampling --device cuda --precision fp16 --size s --latent --batch 64 \
        --steps 32 --peer DIR                   # the released EDM2-S at 512 pixels

Weights are random, with the released shapes; with --latent so are the VAE's. Costs that a run has
once, such as loading and compilation, do not count: the seconds are those between the first batch
and the last one, from the times of the written files, so nothing disturbs the run. CPU seconds are
read after each batch of the sampler. An untimed run warms up.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import torch

from erk.commands import generate
from erk.runtime.progress import ImageBar
from scripts.bench import networks
from scripts.bench.checkouts import NOT_RUN, PEER, peer_module
from scripts.bench.networks import BATCH, LATENT, PRECISION, SIZE, STEPS
from scripts.bench.paired import (
    Row,
    Runs,
    Setup,
    Timed,
    as_released,
    bench,
    in_turns,
    quietly,
    summary,
)

FURTHER = 3  # timed batches beyond the first
RESOLUTION = 0.004  # seconds, of a file's time
Maker = Callable[[int, Path, Callable[[], Any]], None]
"""Samples images of so many seeds, writes them to a folder, and calls a function every batch."""


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


def ours(options: list[str], n: int, folder: Path, each: Callable[[], Any]) -> None:
    """Run erk generate in this process."""
    words, finish = [*options, "--seeds", f"0-{n - 1}", "--outdir", str(folder)], ImageBar.finish

    def finish_batch(bar: ImageBar, images: int) -> None:
        finish(bar, images)
        each()

    with patch.object(ImageBar, "finish", finish_batch):
        quietly(lambda: generate.main(words, standalone_mode=False))


def theirs(peer: Path, case: Case, folder: Path) -> Maker:
    """Return the peer's generate_images with the weights of ours and its default settings.

    It runs with PyTorch's switches as the peer leaves them.
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

    def sample(n: int, folder: Path, each: Callable[[], Any]) -> None:
        with as_released():
            batches = script.generate_images(
                net=net, encoder=encoder, outdir=str(folder), seeds=range(n), verbose=False,
                max_batch_size=case.batch, device=torch.device(case.device), num_steps=case.steps,
            )  # fmt: skip
            for _ in batches:
                each()

    return sample


def per_image(make: Maker, batch: int, further: int = FURTHER) -> Timed:
    """Return seconds and CPU seconds per image of `further` batches beyond the first.

    CPU seconds are 0 for images of other processes.
    """
    n, cpu = further * batch, [0.0]
    with tempfile.TemporaryDirectory() as name:
        make(batch + n, Path(name), lambda: cpu.append(time.process_time()))
        written = sorted(path.stat().st_mtime_ns / 1e9 for path in Path(name).glob("*.png"))
    assert len(written) == batch + n
    seconds = max(written[-1] - written[batch - 1], RESOLUTION)
    return None, seconds / n, (cpu[-1] - cpu[min(1, len(cpu) - 1)]) / n


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
    click.option("--with", "extra", multiple=True, help="A further option for erk generate; may be "
                 "repeated."),
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
            per_image(code, batch, 1)  # warm-up
        timed = partial(per_image, batch=batch)
        return rows_of(case, in_turns(codes, setup.rounds, timed))


if __name__ == "__main__":
    main()

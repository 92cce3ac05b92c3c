"""erk generate over batch sizes and over processes: images per second.

    python -m scripts.bench.scaling                                     # minutes on two cores
    python -m scripts.bench.scaling --device cuda --precision fp16 --size s --latent --steps 32 \
        --batch 16 --batch 64 --batch 128 --ranks 1 --ranks 2 --ranks 8

Batch sizes are timed in one process, per further image as in sampling.py. Processes run under
torchrun with the first batch size and one thread each, and are timed per further image of all of
them together. More processes than cores share these.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from scripts.bench.networks import LATENT, PRECISION, SIZE, STEPS
from scripts.bench.paired import Row, Runs, Setup, Timed, bench, in_turns
from scripts.bench.sampling import Case, options_of, ours, per_image

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
Key = tuple[int, int]  # batch size, processes (0: this one)


def distributed(
    options: list[str], ranks: int, n: int, folder: Path, each: Callable[[], Any]
) -> None:
    """Run erk generate under torchrun; nothing calls `each`."""
    torch.cuda.empty_cache()  # this process holds GPU 0 as well
    command = [*LAUNCH, str(ranks), "-m", "erk", "generate", *options,
               "--seeds", f"0-{n - 1}", "--outdir", str(folder)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"the timed command failed: {result.stderr.strip()}")


def code_of(key: Key, options: list[str], further: int) -> Callable[[], Timed]:
    """Return a function that times one batch size or number of processes."""
    batch, ranks = key
    words = [*options, "--batch", str(batch)]
    make = partial(distributed, words, ranks) if ranks else partial(ours, words)
    return partial(per_image, make, batch * max(ranks, 1), further)


def rows_of(case: Case, runs: dict[Key, Runs], further: int) -> list[Row]:
    """Return one row per batch size and per number of processes, relative to the first of each."""
    rows: list[Row] = []
    for (batch, ranks), run in runs.items():
        first = next(other for key, other in runs.items() if bool(key[1]) == bool(ranks))
        rows.append(case.columns() | {
            "batch": batch, "processes": ranks or "this one",
            "images": further * batch * max(ranks, 1), "images/s": 1 / median(run.seconds),
            "times the first": median(map(truediv, first.seconds, run.seconds)),
            "all seconds": run.seconds,
        })  # fmt: skip
    return rows


@bench(
    SIZE, PRECISION, STEPS, LATENT,
    click.option("--batch", "batches", multiple=True, default=(1, 4, 8), help="Images per batch; "
                 "may be repeated."),
    click.option("--ranks", multiple=True, default=(1, 2), type=click.IntRange(0),
                 help="Processes of torchrun, 0 for none; may be repeated."),
    click.option("--further", default=16, type=click.IntRange(1),
                 help="Timed batches per process."),
)  # fmt: skip
def main(
    setup: Setup, size: str, precision: str, steps: int, latent: bool, batches: tuple[int, ...],
    ranks: tuple[int, ...], further: int,
) -> list[Row]:  # fmt: skip
    """Time erk generate over batch sizes and processes."""
    gpus = torch.cuda.device_count()
    if setup.device == "cuda" and max(ranks) > gpus:
        raise ValueError(f"--ranks {max(ranks)} needs as many GPUs; this machine has {gpus}.")
    os.environ["OMP_NUM_THREADS"] = "1"  # of each process
    case = Case(size, latent, precision, setup.device, batches[0], steps)
    with tempfile.TemporaryDirectory() as folder:
        options = options_of(case, Path(folder))
        code_of((batches[0], 0), options, 1)()  # warm-up
        keys = [(batch, 0) for batch in batches] + [(batches[0], count) for count in ranks]
        codes = {key: code_of(key, options, further) for key in keys}
        runs = in_turns(codes, setup.rounds, timed=lambda code: code())
        return rows_of(case, runs, further)


if __name__ == "__main__":
    main()

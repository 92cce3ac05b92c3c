"""generate.py over batch sizes and over processes: pictures per second.

    python -m scripts.bench.scaling                                     # minutes on two cores
    python -m scripts.bench.scaling --device cuda --precision fp16 --size s --latent --steps 32 \
        --batch 16 --batch 64 --batch 128 --ranks 1 --ranks 2 --ranks 8

Writes results/bench/scaling.json and .md. Batch sizes are timed in one process, per further
picture as in sampling.py; processes with the first batch size under torchrun, one thread each,
per further picture of all of them together. What torchrun takes to begin and to end varies by
about a second, so the further batches of a process should take many.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from scripts.bench.networks import DEVICE, LATENT, ONE_SIZE, PRECISION, STEPS
from scripts.bench.paired import OUT, ROUNDS, Row, report, use_threads
from scripts.bench.sampling import Case, options_of, ours, per_picture

ROOT = Path(__file__).resolve().parents[2]


def together(options: list[str], ranks: int, n: int) -> None:
    """generate.py by several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(ranks), str(ROOT / "generate.py"), *options]  # fmt: skip
    torch.cuda.empty_cache()  # of the runs in this process, which holds GPU 0 as well
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--seeds", f"0-{n - 1}", "--outdir", folder],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise ValueError(f"what is timed ended: {done.stderr.strip()}")
        assert len(list(Path(folder).glob("*.png"))) == n


def codes_of(
    options: list[str], device: str, batches: tuple[int, ...], ranks: tuple[int, ...], further: int
) -> dict[tuple[int, int], Callable[[], float]]:
    """{(batch, processes): what times them}; the first is what the others are compared with."""

    def code(batch: int, size: int) -> Callable[[], float]:
        words = [*options, "--batch", str(batch)]
        make = functools.partial(together, words, size) if size else functools.partial(ours, words)
        pictures = batch * max(size, 1)  # of one batch of every process
        return lambda: per_picture(make, pictures, device, further)[0]

    keys = [(batch, 0) for batch in batches] + [(batches[0], size) for size in ranks]
    return {key: code(*key) for key in keys}


def rows_of(case: Case, found: dict[tuple[int, int], list[float]], further: int) -> list[Row]:
    """One row per batch size and per number of processes, each against the first of its kind."""
    rows: list[Row] = []
    for (batch, ranks), times in found.items():
        first = next(other for key, other in found.items() if bool(key[1]) == bool(ranks))
        faster = median(a / b for a, b in zip(first, times, strict=True))
        rows.append({
            "size": case.size, "data": "latents" if case.latent else "pixels",
            "precision": case.precision, "steps": case.steps, "batch": batch,
            "processes": ranks or "this one", "pictures": further * batch * max(ranks, 1),
            "pictures/s": 1 / median(times),
            "times the first": faster, "all seconds": times,
        })  # fmt: skip
    return rows


@click.command(context_settings=CONTEXT)
@ONE_SIZE
@click.option("--batch", "batches", multiple=True, default=(1, 4, 8), help="May repeat.")
@click.option("--ranks", multiple=True, default=(1, 2), help="Processes; may repeat.")
@DEVICE
@PRECISION
@STEPS
@LATENT
@click.option("--further", default=16, type=click.IntRange(1),
              help="Batches of every process that are timed.")  # fmt: skip
@ROUNDS
@OUT
@clean_exit
def main(
    size: str, batches: tuple[int, ...], ranks: tuple[int, ...], device: str, precision: str,
    steps: int, latent: bool, further: int, rounds: int, out: Path,
) -> None:  # fmt: skip
    """Time generate.py over batch sizes and processes."""
    use_threads(1)
    if device == "cuda" and max(ranks) > torch.cuda.device_count():
        raise ValueError(
            f"--ranks {max(ranks)} needs as many GPUs, and there are {torch.cuda.device_count()}."
        )
    os.environ["OMP_NUM_THREADS"] = "1"
    case = Case(size, latent, precision, device, batches[0], steps, ())
    with tempfile.TemporaryDirectory() as place:
        options = options_of(case, Path(place))
        codes = codes_of(options, device, batches, ranks, further)
        ours([*options, "--batch", str(batches[0])], batches[0])  # warms up
        found: dict[tuple[int, int], list[float]] = {key: [] for key in codes}
        for _ in range(rounds):
            for key, code in codes.items():
                found[key].append(code())
    report("scaling", rows_of(case, found, further), [], out, device)


if __name__ == "__main__":
    main()

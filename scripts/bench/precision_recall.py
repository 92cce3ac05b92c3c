"""Our precision and recall against torch-fidelity's full mode: seconds and peak extra memory.

    python -m scripts.bench.precision_recall     # minutes on one core, 2 GB
    python -m scripts.bench.precision_recall --device cuda --n 50000

Writes results/bench/precision_recall.json and .md.
"""

import functools
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from erk.commands.cli import CONTEXT, clean_exit
from metrics.neighbours import precision_recall
from scripts.bench.networks import DEVICE
from scripts.bench.paired import OUT, ROUNDS, THREADS, Row, in_turns, report, summary, use_threads

LATENT = 64  # dimensions in which the features vary
MEBI = 2**20


def full_mode(*, real: Tensor, generated: Tensor) -> tuple[float, float]:
    """torch-fidelity's own function."""
    return calculate_precision_recall_full(generated, real)


CODES: dict[str, Callable[..., tuple[float, float]]] = {
    "ours": precision_recall,
    "torch-fidelity full": full_mode,
}
PRODUCTS = {"ours": 2, "torch-fidelity full": 3}  # [n, D] x [D, n]; ours halves the symmetric ones


def features(n: int, dim: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Real and generated features [n, dim] like those behind a ReLU; the latter vary less."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(LATENT, dim, generator=generator)
    real = torch.randn(n, LATENT, generator=generator) @ weight
    generated = (0.9 * torch.randn(n, LATENT, generator=generator) + 0.1) @ weight
    return real.relu_().to(device), generated.relu_().to(device)


def peak(device: str) -> float:
    """Most memory that this process has had, resident or on the GPU, MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MEBI
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBI


def extra_memory(code: str, n: int, dim: int, device: str = "cpu") -> float:
    """Peak memory of one call above that of the process with the features, MiB."""
    real, generated = features(n, dim, device)
    CODES[code](real=real[:64], generated=generated[:64])  # loads what any first call loads
    before = peak(device)
    CODES[code](real=real, generated=generated)
    return peak(device) - before


def in_fresh_process(code: str, n: int, dim: int, threads: int, device: str) -> float:
    """``extra_memory`` in a process of its own, where no earlier peak hides this one."""
    options = {"--memory-of": code, "--n": n, "--dim": dim, "--threads": threads,
               "--device": device}  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    return float(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def compare(n: int, dim: int, rounds: int, threads: int, device: str) -> list[Row]:
    """One row per code, and ours with twice as many samples for its memory."""
    # First: a child's peak begins at the memory of the process that starts it.
    memory = {code: in_fresh_process(code, n, dim, threads, device) for code in CODES}
    twice = in_fresh_process("ours", 2 * n, dim, threads, device)
    real, generated = features(n, dim, device)
    codes = {
        name: functools.partial(code, real=real, generated=generated)
        for name, code in CODES.items()
    }
    for code in CODES.values():
        code(real=real[:64], generated=generated[:64])  # loads what any first call loads
    runs = in_turns(codes, rounds)
    rows = []
    for code, figures in summary(runs).items():
        precision, recall = runs[code].value
        row = {"n": n, "D": dim, "code": code, "precision": precision, "recall": recall}
        gflop = 2 * PRODUCTS[code] * n**2 * dim / 1e9
        speed = {"GFLOP": gflop, "GFLOP/s": gflop / figures["seconds"], "MB in": 8 * n * dim / 1e6}
        rows.append(row | figures | speed | {"extra MiB": memory[code]})
    return [*rows, {"n": 2 * n, "D": dim, "code": "ours", "extra MiB": twice}]


@click.command(context_settings=CONTEXT)
@click.option("--n", default=8000, help="Samples of each set.")
@click.option("--dim", default=4096, help="Dimensions of the features.")
@click.option("--memory-of", hidden=True, type=click.Choice(list(CODES)))
@DEVICE
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(n: int, dim: int, memory_of: str | None, device: str, rounds: int, threads: int,
         out: Path) -> None:  # fmt: skip
    """Time precision and recall and measure their memory beyond the features."""
    use_threads(threads)
    if memory_of:
        click.echo(extra_memory(memory_of, n, dim, device))
    else:
        rows = compare(n, dim, rounds, threads, device)
        report("precision_recall", rows, ["torch-fidelity"], out, device)


if __name__ == "__main__":
    main()

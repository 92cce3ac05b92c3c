"""Our precision and recall against torch-fidelity's full mode: seconds and peak extra memory.

    python -m scripts.bench.precision_recall     # minutes on one core, 2 GB
    python -m scripts.bench.precision_recall --device cuda --n 50000 --alone
"""

import functools
from collections.abc import Callable, Sequence

import click
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from metrics.neighbours import precision_recall
from scripts.bench.paired import (
    MEBI,
    Row,
    Setup,
    bench,
    in_subprocess,
    in_turns,
    resident_peak,
    summary,
    use_threads,
)

LATENT = 64  # dimensions in which the features vary


def full_mode(*, real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Call torch-fidelity's function."""
    return calculate_precision_recall_full(generated, real)


CODES: dict[str, Callable[..., tuple[float, float]]] = {
    "ours": precision_recall,
    "torch-fidelity full": full_mode,
}
PRODUCTS = {"ours": 2, "torch-fidelity full": 3}  # [n, D] x [D, n]; ours halves the symmetric ones


def features(n: int, dim: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Draw real and generated features [n, dim] like those behind a ReLU; the latter vary less."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(LATENT, dim, generator=generator)
    real = torch.randn(n, LATENT, generator=generator) @ weight
    generated = (0.9 * torch.randn(n, LATENT, generator=generator) + 0.1) @ weight
    return real.relu_().to(device), generated.relu_().to(device)


def peak(device: str) -> float:
    """Return the peak memory of this process, resident or on the GPU, in MiB."""
    return torch.cuda.max_memory_allocated() / MEBI if device == "cuda" else resident_peak()


def extra_memory(code: str, n: int, dim: int, device: str, threads: int) -> float:
    """Return the peak memory of one call above that of the process with the features, in MiB."""
    use_threads(threads)
    real, generated = features(n, dim, device)
    CODES[code](real=real[:64], generated=generated[:64])  # warm-up
    before = peak(device)
    CODES[code](real=real, generated=generated)
    return peak(device) - before


def compare(setup: Setup, n: int, dim: int, names: Sequence[str]) -> list[Row]:
    """Return one row per code, and one of ours with twice as many samples for its memory."""
    # Memory first, in new processes: a child's peak starts at the memory of its parent.
    start = "fork" if setup.device == "cpu" else "spawn"  # a GPU is not shared by fork
    same = dim, setup.device, setup.threads
    memory = {
        (name, count): in_subprocess(start, extra_memory, name, count, *same)
        for name, count in [*((name, n) for name in names), ("ours", 2 * n)]
    }
    real, generated = features(n, dim, setup.device)
    codes = {name: functools.partial(CODES[name], real=real, generated=generated) for name in names}
    for name in names:
        CODES[name](real=real[:64], generated=generated[:64])  # warm-up
    runs = in_turns(codes, setup.rounds)
    rows: list[Row] = []
    for name, times in summary(runs).items():
        precision, recall = runs[name].value
        row = {"n": n, "D": dim, "code": name, "precision": precision, "recall": recall}
        gflop = 2 * PRODUCTS[name] * n**2 * dim / 1e9
        speed = {"GFLOP": gflop, "GFLOP/s": gflop / times["seconds"], "MB in": 8 * n * dim / 1e6}
        rows.append(row | times | speed | {"extra MiB": memory[name, n]})
    return [*rows, {"n": 2 * n, "D": dim, "code": "ours", "extra MiB": memory["ours", 2 * n]}]


@bench(
    click.option("--n", default=8000, help="Samples of each set."),
    click.option("--dim", default=4096, help="Dimensions of the features."),
    click.option("--alone", is_flag=True, help="Leave torch-fidelity out."),
    packages=["torch-fidelity"],
)
def main(setup: Setup, n: int, dim: int, alone: bool) -> list[Row]:
    """Time precision and recall, and measure their memory beyond the features."""
    return compare(setup, n, dim, ["ours"] if alone else [*CODES])


if __name__ == "__main__":
    main()

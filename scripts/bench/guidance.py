"""ERK-Guid against plain Heun: how much longer, and how much more memory.

    python -m scripts.bench.guidance                                    # minutes on one core
    python -m scripts.bench.guidance --device cuda --precision fp16 --size s --batch 64 --steps 32

Writes results/bench/guidance.json and .md. Two measures of the time: whole runs in turns, beside
which Heun runs once more to show their noise, and the share of a run that is spent within the
guide. Memory is the peak of all tensors that PyTorch holds at a time, beyond the weights.
"""

import functools
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erk.commands.cli import CONTEXT, clean_exit
from erk.method.point import Step
from erk.method.sampler import solve, steps
from erk.method.settings import Settings
from erk.method.solvers import heun
from erk.runtime.memory import keep_freed_memory
from erk.runtime.precision import NONE, tf32_only
from scripts.bench import networks
from scripts.bench.networks import BATCH, DEVICE, ONE_SIZE, PRECISION, STEPS
from scripts.bench.paired import OUT, ROUNDS, THREADS, Row, in_turns, report, summary, use_threads


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within hold at a time; what has no values counts as well."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        inputs = {id(x.untyped_storage()) for x in tree_leaves(args) if isinstance(x, Tensor)}
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and id(x.untyped_storage()) not in inputs:
                self._count(x.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Peak memory of a run beyond what was held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as peak:
        run()
    return peak.most


def walk(network: Any, noise: Tensor, labels: Tensor, settings: Settings, device: str) -> Tensor:
    """One run of the sampler, until the device is done."""
    with torch.inference_mode():
        x = solve(settings.drift(network, labels), noise, settings)
    networks.done(device)
    return x


def share(network: Any, noise: Tensor, labels: Tensor, settings: Settings, device: str) -> float:
    """Seconds within the guide as a share of all others; CPU seconds on a CPU.

    On a GPU the host waits before and after the guide, on purpose.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    spent, guide = [0.0], settings.guide()

    def timed(step: Step) -> Tensor:
        networks.done(device)
        start = clock()
        x = guide(step)
        networks.done(device)
        spent[0] += clock() - start
        return x

    drift, sigmas = settings.drift(network, labels), settings.sigmas()
    start = clock()
    with torch.inference_mode():
        for _ in steps(drift, noise * sigmas[0], sigmas, heun, timed):
            pass
    networks.done(device)
    whole = clock() - start
    return spent[0] / (whole - spent[0])


def compare(size: str, batch: int, precision: str, device: str, count: int, rounds: int) -> Any:
    """The rows: plain Heun, with ERK-Guid, and plain Heun again."""
    network = networks.our_network(size, precision, device)
    noise, labels = networks.inputs(network, batch, device)
    plain = Settings(steps=count)
    guided = replace(plain, w_stiff=1.0, w_con=0.5)
    ways = {"ours": plain, "ERK-Guid": guided, "Heun again": plain}
    codes = {
        name: functools.partial(walk, network, noise, labels, settings, device)
        for name, settings in ways.items()
    }
    for code in codes.values():
        code()  # what the first call of all takes, the workspace of CUDA's libraries included
    memory = {name: peak_bytes(code, device) for name, code in codes.items()}
    found = summary(in_turns(codes, rounds))
    told = {"size": size, "batch": batch, "steps": count, "precision": precision}
    rows: list[Row] = []
    for name in ways:
        label = "Heun" if name == "ours" else name
        row = told | {"code": label} | found[name]
        row |= {"peak bytes": memory[name], "beyond Heun": memory[name] - memory["ours"],
                "state pair": 2 * noise.numel() * noise.element_size()}  # fmt: skip
        if name == "ERK-Guid":
            shares = [share(network, noise, labels, guided, device) for _ in range(rounds)]
            row["share in guide"] = statistics.median(shares)
        rows.append(row)
    return rows


@click.command(context_settings=CONTEXT)
@ONE_SIZE
@BATCH
@DEVICE
@PRECISION
@STEPS
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(
    size: str, batch: int, device: str, precision: str, steps: int, rounds: int, threads: int,
    out: Path,
) -> None:  # fmt: skip
    """Time what ERK-Guid adds to Heun, and take its memory."""
    use_threads(threads)
    keep_freed_memory()  # as the commands do
    with tf32_only(NONE):  # as generate.py has it
        rows = compare(size, batch, precision, device, steps, rounds)
    report("guidance", rows, [], out, device)


if __name__ == "__main__":
    main()

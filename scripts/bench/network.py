"""Forward pass of EDM2's network, by size and precision, against its peer: seconds and roofline.

    python -m scripts.bench.network --against b57bb0c                      # a minute on one core
    python -m scripts.bench.network --device cuda --precision fp16 --batch 64 \
        --size xs --size s --size m --size l --size xl --size xxl --peer DIR

Weights are random, with the released shapes. "ours" is the first precision; the peer computes in
float16 on CUDA, as released, and in float32 elsewhere. --cudnn-benchmark adds each of our networks
with kernels that cuDNN selects by timing. Two processes may then select kernels that round
differently, so erk generate does so only if that is at least 5 % faster.
"""

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.models.compiling import check_compiler, compile_network
from erk.runtime.memory import keep_freed_memory
from erk.runtime.precision import NONE, tf32_only
from scripts.bench import networks
from scripts.bench.checkouts import NOT_RUN, PEER
from scripts.bench.networks import BATCH, PRECISIONS, SIZES
from scripts.bench.paired import (
    Row,
    Setup,
    as_released,
    bench,
    in_turns,
    summary,
    synchronize,
)

SELECTED = ", cudnn.benchmark"


def call(
    name: str, network: Any, x: Tensor, sigma: Tensor, labels: Tensor, device: str
) -> Tensor:  # fmt: skip
    """Call the network once and wait for the device."""
    torch.backends.cudnn.benchmark = name.endswith(SELECTED)
    with torch.inference_mode(), as_released() if name == "peer" else nullcontext():
        denoised = network(x, sigma, labels)
    torch.backends.cudnn.benchmark = False
    synchronize(device)
    return denoised


def networks_of(
    size: str, precisions: tuple[str, ...], device: str, compiled: bool, selected: bool,
    against: str | None, peer: Path | None,
) -> dict[str, tuple[str, Any]]:  # fmt: skip
    """Return {name: (precision, network)}; the first is "ours"."""
    nets: dict[str, tuple[str, Any]] = {}
    for i, precision in enumerate(precisions):
        for suffix in ("", SELECTED) if selected else ("",):
            network = networks.our_network(size, precision, device)
            is_first = i == 0 and not suffix
            nets["ours" if is_first else f"ours, {precision}{suffix}"] = (precision, network)
            if compiled:
                network = networks.our_network(size, precision, device)
                compile_network(network, torch.device(device))
                nets[f"ours, {precision}, compiled{suffix}"] = (precision, network)
    if against is not None:
        for fold, suffix in ((True, ""), (False, ", not folded")):
            for precision in precisions:
                earlier = networks.earlier_network(against, size, precision, fold, device)
                nets[f"ours at {against}{suffix}, {precision}"] = (precision, earlier)
    if peer is not None:
        precision = "fp16" if device == "cuda" else "fp32"
        nets["peer"] = (precision, networks.peer_network(peer, size, device))
    return nets


def compare(setup: Setup, size: str, batch: int, nets: dict[str, tuple[str, Any]]) -> list[Row]:
    """Return one row per network."""
    sigma, device = torch.tensor(1.0), setup.device
    codes = {}
    for name, (_, network) in nets.items():
        x, labels = networks.inputs(network, batch, device)
        level = sigma if name.startswith("ours") else sigma.to(device)
        codes[name] = functools.partial(call, name, network, x, level, labels, device)
        for _ in range(3):
            codes[name]()  # warm-up; compiles, and records CUDA's graph
    runs = in_turns(codes, setup.rounds)
    reference = runs["ours"].value
    rows: list[Row] = []
    clock = "seconds" if device == "cuda" else "CPU s"
    for name, times in summary(runs).items():
        precision = nets[name][0]
        work = networks.work_of(size, precision, batch)
        best = networks.limits(precision, device, tiny=size == "tiny")
        difference = (runs[name].value - reference).std() / reference.std()
        row = {"size": size, "batch": batch, "code": name, "precision": precision}
        rows.append(row | times | {"difference": float(difference)}
                    | networks.roofline(times[clock], work, best))  # fmt: skip
    return rows


def longest(setup: Setup, size: str, batch: int, network: Any, n: int) -> list[Row]:
    """Return the n operations of one call that take the device longest."""
    x, labels = networks.inputs(network, batch, setup.device)
    with torch.profiler.profile() as profiler:
        call("ours", network, x, torch.tensor(1.0), labels, setup.device)
    kind = "cpu" if setup.device == "cpu" else "device"
    times = {one.key: (getattr(one, f"self_{kind}_time_total"), one.count)
             for one in profiler.key_averages()}  # fmt: skip
    return [
        {"size": size, "batch": batch, "code": key, "seconds": times[key][0] / 1e6,
         "calls": times[key][1]}
        for key in sorted(times, key=lambda key: -times[key][0])[:n]
    ]  # fmt: skip


@bench(
    click.option("--size", "sizes", type=click.Choice(SIZES), multiple=True, default=("xs",),
                 help="Size of the network; may be repeated."),
    BATCH,
    click.option("--precision", "precisions", type=click.Choice(list(PRECISIONS)), multiple=True,
                 default=("fp32", "bf16"), help="Precision; may be repeated."),
    click.option("--compile", "compiled", is_flag=True, help="Also time compiled networks."),
    click.option("--cudnn-benchmark", "selected", is_flag=True,
                 help="Also let cuDNN select kernels by timing."),
    click.option("--top", default=0, help="Also list so many operations that take longest."),
    click.option("--against", metavar="COMMIT", help="Also time the network of that commit."),
    PEER,
)  # fmt: skip
def main(
    setup: Setup, sizes: tuple[str, ...], batch: int, precisions: tuple[str, ...], compiled: bool,
    selected: bool, top: int, against: str | None, peer: Path | None,
) -> Iterator[Row]:  # fmt: skip
    """Time the network's forward pass."""
    keep_freed_memory()  # as the commands do
    if compiled:
        check_compiler(torch.device(setup.device))
    with tf32_only(NONE):  # as erk generate does
        for size in sizes:
            nets = networks_of(
                size, precisions, setup.device, compiled, selected, against, peer
            )  # fmt: skip
            yield from compare(setup, size, batch, nets)
            if top:
                yield from longest(setup, size, batch, nets["ours"][1], top)
            if peer is None:
                yield {"size": size, "batch": batch, "code": NOT_RUN}


if __name__ == "__main__":
    main()

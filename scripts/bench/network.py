"""One call of EDM2's network, per size and precision, against its peer's: seconds and roofline.

    python -m scripts.bench.network --against b57bb0c                      # a minute on one core
    python -m scripts.bench.network --device cuda --precision fp16 --batch 64 \
        --size xs --size s --size m --size l --size xl --size xxl --peer DIR

Writes results/bench/network.json and .md. Weights are random, of the released shapes. "ours" is
the first precision; the peer computes in float16 on CUDA, as released, and in float32 elsewhere.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.models.compiling import check_compiler, compile_network
from erk.runtime.memory import keep_freed_memory
from erk.runtime.precision import NONE, tf32_only
from scripts.bench import networks
from scripts.bench.networks import BATCH, DEVICE, NOT_RUN, PEER, PRECISIONS, SIZE
from scripts.bench.paired import OUT, ROUNDS, THREADS, Row, in_turns, report, summary, use_threads


def once(network: Any, x: Any, sigma: Any, labels: Any, device: str) -> torch.Tensor:
    """One call, until the device is done."""
    with torch.inference_mode():
        made = network(x, sigma, labels)
    networks.done(device)
    return made


def codes_of(
    size: str, precisions: tuple[str, ...], device: str, compiled: bool, against: str | None,
    peer: Path | None,
) -> dict[str, tuple[str, Any]]:  # fmt: skip
    """{name of the code: (precision, network)}."""
    codes = {}
    for i, precision in enumerate(precisions):
        network = networks.our_network(size, precision, device)
        codes["ours" if i == 0 else f"ours, {precision}"] = (precision, network)
        if compiled:
            network = networks.our_network(size, precision, device)
            compile_network(network, torch.device(device))
            codes[f"ours, {precision}, compiled"] = (precision, network)
    if against is not None:
        for fold in (True, False):
            told = f"ours at {against}" + ("" if fold else ", not folded")
            for precision in precisions:
                network = networks.earlier_network(against, size, precision, fold, device)
                codes[f"{told}, {precision}"] = (precision, network)
    if peer is not None:
        precision = "fp16" if device == "cuda" else "fp32"
        codes["peer"] = (precision, networks.peer_network(peer, size, device))
    return codes


def compare(
    size: str, batch: int, precisions: tuple[str, ...], device: str, compiled: bool,
    against: str | None, peer: Path | None, rounds: int,
) -> list[Row]:  # fmt: skip
    """One row per code."""
    nets = codes_of(size, precisions, device, compiled, against, peer)
    sigma = torch.tensor(1.0)
    codes: dict[str, Callable[[], torch.Tensor]] = {}
    for name, (_, net) in nets.items():
        x, labels = networks.inputs(net, batch, device)
        level = sigma if name.startswith("ours") else sigma.to(device)
        codes[name] = functools.partial(once, net, x, level, labels, device)
        for _ in range(3 if compiled else 1):
            codes[name]()  # loads what any first call loads, compiles, and records CUDA's graph
    runs = in_turns(codes, rounds)
    exact = runs["ours"].value
    rows: list[Row] = []
    clock = "seconds" if device == "cuda" else "CPU s"
    for name, figures in summary(runs).items():
        precision = nets[name][0]
        work = networks.work_of(size, precision, batch)
        best = networks.limits(precision, device, tiny=size == "tiny")
        differs = (runs[name].value - exact).std() / exact.std()
        told = {"size": size, "batch": batch, "code": name, "precision": precision}
        rows.append(told | figures | {"difference": float(differs)}
                    | networks.roofline(figures[clock], work, best))  # fmt: skip
    if peer is None:
        rows.append({"size": size, "batch": batch, "code": NOT_RUN})
    return rows


@click.command(context_settings=CONTEXT)
@SIZE
@BATCH
@DEVICE
@click.option("--precision", "precisions", type=click.Choice(list(PRECISIONS)), multiple=True,
              default=("fp32", "bf16"), help="May repeat.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Also time compiled networks.")
@click.option("--against", metavar="COMMIT", help="Also time the network as that commit had it.")
@PEER
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(
    sizes: tuple[str, ...], batch: int, device: str, precisions: tuple[str, ...], compiled: bool,
    against: str | None, peer: Path | None, rounds: int, threads: int, out: Path,
) -> None:  # fmt: skip
    """Time the network's forward pass."""
    use_threads(threads)
    keep_freed_memory()  # as the commands do
    if compiled:
        check_compiler(torch.device(device))
    rows = []
    with tf32_only(NONE):  # as generate.py has it
        for size in sizes:
            rows += compare(size, batch, precisions, device, compiled, against, peer, rounds)
    report("network", rows, [], out, device)


if __name__ == "__main__":
    main()

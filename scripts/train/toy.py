"""Train the small networks of the 2-D toy: the guides of CFG and Autoguidance.

    python -m scripts.train.toy            # all three, about 2 CPU minutes
    python -m scripts.train.toy --only toy-weak

Writes to checkpoints/: toy-main (both classes, with labels), toy-uncond (both classes, no labels:
the guide of CFG) and toy-weak (labels, half as wide and stopped early: the guide of Autoguidance).
One thread and fixed seeds: a rerun on the same machine gives the same weights.
"""

import math
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from erk.analysis import toy
from erk.analysis.toy_networks import CHECKPOINTS, SIGMA_DATA, ToyDenoiser
from erk.commands.cli import CONTEXT, clean_exit
from scripts.train.common import reproducible, write_weights

BATCH, RATE = 1024, 3e-3
NOISE_MEAN, NOISE_STD = -2.3, 1.5  # of ln sigma, as in Autoguidance's toy
HELD_OUT = 16_384


class Run(NamedTuple):
    """One network and its training."""

    width: int
    label_dim: int
    steps: int
    seed: int


RUNS = {
    "toy-main": Run(128, 2, 4000, 0),
    "toy-uncond": Run(128, 0, 4000, 1),
    "toy-weak": Run(64, 2, 600, 2),
}


class Batch(NamedTuple):
    """Noisy states and the clean ones that a denoiser should return."""

    noisy: Tensor  # [B, 2] float32
    sigma: Tensor  # [B]
    labels: Tensor  # one-hot [B, 2]
    clean: Tensor  # [B, 2]


def batch_of(mixture: toy.Mixture, size: int, draw: torch.Generator) -> Batch:
    """Draw samples of both classes at the noise levels of EDM's training."""
    clean, label = toy.draw_samples(mixture, size, draw)
    sigma = (torch.randn(size, generator=draw) * NOISE_STD + NOISE_MEAN).exp()
    noise = torch.randn(size, 2, generator=draw)
    x = clean.float()
    return Batch(x + sigma[:, None] * noise, sigma, torch.eye(2)[label], x)


def edm_loss(denoised: Tensor, batch: Batch) -> Tensor:
    """Compute EDM's weighted squared error (Karras et al. 2022, Eq. 8 and Table 1), a mean."""
    weight = (batch.sigma**2 + SIGMA_DATA**2) / (batch.sigma * SIGMA_DATA) ** 2
    return (weight[:, None] * (denoised - batch.clean) ** 2).mean()


def train(run: Run) -> tuple[ToyDenoiser, float]:
    """Train a network; return it and its CPU seconds."""
    mixture, start = toy.tree("AB"), time.process_time()
    draw = torch.Generator().manual_seed(run.seed)
    with reproducible(run.seed):
        network = ToyDenoiser(run.width, label_dim=run.label_dim)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=(0.9, 0.99))
    for step in range(run.steps):
        batch = batch_of(mixture, BATCH, draw)
        for group in optimizer.param_groups:  # half a cosine down to 0 replaces an average
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / run.steps))
        optimizer.zero_grad(set_to_none=True)
        edm_loss(network(batch.noisy, batch.sigma, batch.labels), batch).backward()
        optimizer.step()
    return network.eval(), time.process_time() - start


@torch.no_grad()
def held_out(network: ToyDenoiser) -> tuple[float, float]:
    """Compute the held-out loss, and that of the exact denoiser with the same labels."""
    both = toy.tree("AB")
    batch = batch_of(both, HELD_OUT, torch.Generator().manual_seed(1000))
    denoised = network(batch.noisy, batch.sigma, batch.labels)
    exact = torch.empty_like(batch.noisy)
    for index, name in enumerate(toy.ANGLES):
        rows = batch.labels[:, index] > 0
        known = toy.tree(name) if network.label_dim else both
        exact[rows] = toy.denoiser(known)(batch.noisy[rows], batch.sigma[rows], None)
    return edm_loss(denoised, batch).item(), edm_loss(exact, batch).item()


def save_network(name: str, run: Run, folder: Path) -> dict[str, Any]:
    """Train, write weights and metadata, and return the metadata."""
    network, seconds = train(run)
    network.half().float()  # as in the file
    loss, floor = held_out(network)
    metadata = {
        "name": name,
        "architecture": {
            "class": "ToyDenoiser",
            "kwargs": {"width": run.width, "layers": 3, "label_dim": run.label_dim},
        },
        "licence": "Apache-2.0",
        "source": "trained by scripts/train/toy.py on samples of erk.analysis.toy, classes A and B",
        "training": {
            "command": f"python -m scripts.train.toy --only {name}",
            "seed": run.seed,
            "steps": run.steps,
            "batch": BATCH,
            "rate": RATE,
            "cpu_seconds": round(seconds, 1),
            "held_out_loss": round(loss, 5),
            "loss_of_the_exact_denoiser": round(floor, 5),
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
    }
    return write_weights(folder / f"{name}.safetensors", network.half().state_dict(), metadata)


@click.command(context_settings=CONTEXT)
@click.option("--only", type=click.Choice([*RUNS]), help="Train only this network.")
@click.option("--folder", default=str(CHECKPOINTS), help="Folder of weights and metadata.")
@clean_exit
def main(only: str | None, folder: str) -> None:
    """Train the toy's networks and write them to checkpoints/."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    for name in RUNS if only is None else [only]:
        training = save_network(name, RUNS[name], Path(folder))["training"]
        click.echo(
            f"{name}: loss {training['held_out_loss']}, "
            f"exact {training['loss_of_the_exact_denoiser']}, {training['cpu_seconds']} CPU seconds"
        )


if __name__ == "__main__":
    main()

"""Train the embedded networks: EDM2 denoisers of scikit-learn's digits, and their classifier.

    python -m scripts.train.digits            # everything, about 9 CPU minutes
    python -m scripts.train.digits --only main

Writes to checkpoints/: digits (class-conditional), digits-weak (the same run, early: the guide of
Autoguidance), digits-uncond (no labels: the guide of CFG), and digits-classifier (extractor).
One thread and fixed seeds: a rerun on the same machine gives the same weights. It stops early on
purpose, while Autoguidance still has something to correct (results/demo.md: FD with and without).
"""

import copy
import math
import platform
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.models.checkpoint import Checkpoint, Part, write_safetensors
from erk.models.edm2 import MPConv, Precond
from erk.models.ema import exponent_of
from erk.models.encoders import DigitsEncoder

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
NETWORK: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "use_fp16": False,
    "sigma_data": 0.5,
    "logvar_channels": 32,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 16,  # the default of 64 would leave so small a net without attention
}
BATCH = 128
RATE, RAMP_UP, DECAY_AFTER = 1e-2, 50_000, 2000 * BATCH  # learning rate, in images
NOISE_MEAN, NOISE_STD = -0.8, 1.6  # of ln sigma
EMA_STD = 0.10
RUNS = {  # name -> labels, seed, {images seen: file to write}
    "main": (10, 0, {32_768: "digits-weak", 262_144: "digits"}),
    "uncond": (0, 1, {262_144: "digits-uncond"}),
}


def load_digits() -> tuple[DigitsEncoder, Tensor, Tensor]:
    """Return the encoder, all 1797 digits [N, 1, 8, 8] encoded, and one-hot labels [N, 10]."""
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    values = torch.tensor(data.images, dtype=torch.float32)[:, None]
    scaled = values / 8 - 1
    encoder = DigitsEncoder(round(scaled.mean().item(), 4), round(scaled.std().item(), 4))
    labels = torch.nn.functional.one_hot(torch.tensor(data.target), 10).to(torch.float32)
    return encoder, encoder.encode(values), labels


def edm2_loss(network: Precond, images: Tensor, labels: Tensor | None, draw: Any) -> Tensor:
    """Compute EDM2's loss with learned log-variance u(sigma) (Karras et al. 2024, Eq. 21)."""
    normal = torch.randn([len(images)], generator=draw)
    sigma = (normal * NOISE_STD + NOISE_MEAN).exp()
    noise = torch.randn(images.shape, generator=draw) * sigma.reshape(-1, 1, 1, 1)
    denoised = network(images + noise, sigma, labels)
    weight = (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2
    log_variance = network.log_variance(sigma)
    error = weight.reshape(-1, 1, 1, 1) * (denoised - images) ** 2
    return (error / log_variance.exp() + log_variance).mean()


def learning_rate(seen: int) -> float:
    """Return an inverse square root decay after a linear ramp-up (Karras et al. 2024, Eq. 67)."""
    return RATE * min(seen / RAMP_UP, 1) / math.sqrt(max(seen / DECAY_AFTER, 1))


@torch.no_grad()
def update_average(average: Precond, network: Precond, seen: int) -> None:
    """Move the power-function average towards the network."""
    beta = (1 - BATCH / seen) ** (exponent_of(EMA_STD) + 1)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - beta)


def train(name: str) -> None:
    """Run `RUNS[name]` and write its checkpoints."""
    label_dim, seed, milestones = RUNS[name]
    encoder, images, labels = load_digits()
    torch.manual_seed(seed)
    network = Precond(label_dim=label_dim, **NETWORK).train()
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    draw = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for seen in range(BATCH, max(milestones) + 1, BATCH):
        pick = torch.randint(len(images), [BATCH], generator=draw)
        for module in network.modules():
            if isinstance(module, MPConv):
                module.force_unit_weight()
        optimizer.zero_grad(set_to_none=True)
        loss = edm2_loss(network, images[pick], labels[pick] if label_dim else None, draw)
        loss.backward()
        for parameter in network.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seen)
        optimizer.step()
        update_average(average, network, seen)
        if seen in milestones:
            save(milestones[seen], average, encoder, label_dim, seed, seen)
        if seen % 32_768 == 0:
            spent = time.process_time() - start
            click.echo(f"{name}: {seen:7d} images, loss {loss.item():.3f}, {spent:.0f} CPU seconds")


def save(
    name: str, average: Precond, encoder: DigitsEncoder, label_dim: int, seed: int, seen: int
) -> None:
    """Write the averaged network as float16 safetensors with its metadata, as released nets are."""
    metadata = {
        "name": name,
        "licence": "Apache-2.0",
        "source": "trained by scripts/train/digits.py on scikit-learn's bundled digits",
        "training": {
            "command": "python -m scripts.train.digits",
            "seed": seed,
            "images": seen,
            "batch": BATCH,
            "ema_std": EMA_STD,
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
    }
    checkpoint = Checkpoint(
        Part("Precond", {"label_dim": label_dim, **NETWORK}),
        Part("DigitsEncoder", {"mean": encoder.mean, "std": encoder.std}),
        {key: tensor.to(torch.float16) for key, tensor in average.state_dict().items()},
        metadata,
    )
    write_safetensors(CHECKPOINTS / f"{name}.safetensors", checkpoint)
    click.echo(f"wrote checkpoints/{name}.safetensors")


@click.command()
@click.option("--only", type=click.Choice([*RUNS, "classifier"]), help="Train just this one.")
def main(only: str | None) -> None:
    """Train the embedded networks and write them to checkpoints/."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    for name in RUNS if only is None else [only]:
        if name in RUNS:
            train(name)
    if only in (None, "classifier"):
        from scripts.train.classifier import train_classifier

        train_classifier(CHECKPOINTS / "digits-classifier.safetensors")


if __name__ == "__main__":
    main()

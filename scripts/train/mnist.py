"""Train the embedded networks of MNIST: three EDM2 denoisers of 4 x 14 x 14 latents.

    python -m scripts.train.mnist --data PATH                    # hours of one CPU core
    python -m scripts.train.mnist --data PATH --only main

PATH is torchvision's MNIST folder, a folder of the four IDX files, or an .npz with the arrays
train, train_y, test and test_y. Writes to checkpoints/: mnist (class-conditional), mnist-weak (the
same run, early: the guide of Autoguidance) and mnist-uncond (no labels: the guide of CFG). A killed
run goes on from --state to the same weights.
"""

from pathlib import Path
from typing import Any

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.models.checkpoint import Part
from erk.models.encoders import PixelUnshuffleEncoder
from scripts.train.denoiser import CHECKPOINTS, Data, Recipe, Run, train
from scripts.train.mnist_data import Mnist, read_mnist

NETWORK: dict[str, Any] = {
    "img_resolution": 14,
    "img_channels": 4,
    "use_fp16": False,
    "sigma_data": 0.5,
    "logvar_channels": 32,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [7],
    "channels_per_head": 32,
}
RECIPE = Recipe(NETWORK)
MAIN, WEAK, UNCOND = 2_097_152, 196_608, 1_048_576  # images seen
RUNS = {
    "main": Run(10, 0, {WEAK: "mnist-weak", MAIN: "mnist"}),
    "uncond": Run(0, 1, {UNCOND: "mnist-uncond"}),
}
HELD_OUT = 1024  # test images of the loss curve
SOURCE = (
    "trained by scripts/train/mnist.py on MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; "
    "CC BY-SA 3.0)"
)


def encoded(mnist: Mnist) -> Data:
    """Encode the training images, and the first test images for the loss curve."""
    values = mnist.train.to(torch.float32) / 255
    scale = {"mean": round(values.mean().item(), 4), "std": round(values.std().item(), 4)}
    encoder = PixelUnshuffleEncoder(scale["mean"], scale["std"])
    return Data(
        Part("PixelUnshuffleEncoder", scale | {"factor": encoder.factor}),
        encoder.encode(mnist.train[:, None]),
        mnist.train_y,
        SOURCE,
        encoder.encode(mnist.test[:HELD_OUT, None]),
        mnist.test_y[:HELD_OUT],
    )


@click.command(context_settings=CONTEXT)
@click.option("--data", metavar="PATH", required=True, help="MNIST: a folder or an .npz.")
@click.option("--only", type=click.Choice(list(RUNS)), help="Train only this network.")
@click.option(
    "--dest", default=str(CHECKPOINTS), show_default="checkpoints/", help="Folder of the networks."
)
@click.option(
    "--state", default="out/train/mnist", help="Folder of the state of training, to resume from."
)
@clean_exit
def main(data: str, only: str | None, dest: str, state: str) -> None:
    """Train the MNIST networks and write them to checkpoints/."""
    content = encoded(read_mnist(Path(data)))
    for name in RUNS if only is None else [only]:
        command = f"python -m scripts.train.mnist --data PATH --only {name}"
        train(RECIPE, RUNS[name], content, command, Path(dest), Path(state))


if __name__ == "__main__":
    main()

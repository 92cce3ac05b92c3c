"""Train the classifiers that serve as feature extractors of the embedded data.

    python -m scripts.train.classifier digits               # 10 CPU seconds
    python -m scripts.train.classifier mnist --data PATH    # 2 CPU minutes

The digits classifier is trained on four fifths of scikit-learn's 1797 digits, the MNIST classifier
on the 60 000 training images (PATH as in scripts.train.mnist). Neither sees the held-out images
whose accuracy is in its metadata.
"""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import safetensors
import sklearn
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from erk.commands.cli import CONTEXT, clean_exit
from metrics.extractors.classifier import Classifier, known_classifiers, normalise
from metrics.references import real_images
from scripts.train.common import reproducible, write_weights
from scripts.train.mnist_data import read_mnist

BATCH, WEIGHT_DECAY = 64, 1e-2


@dataclass(frozen=True)
class Recipe:
    """How the classifier of a data set is trained."""

    architecture: dict[str, Any]
    epochs: int
    learning_rate: float
    shift: int  # pixels by which batches are shifted at random
    source: str


RECIPES = {
    "digits": Recipe(
        {"width": 16, "features": 64, "classes": 10}, 40, 3e-3, 1,
        "scikit-learn's bundled digits (UCI Optical Recognition of Handwritten Digits)",
    ),
    "mnist": Recipe(
        {"width": 16, "features": 128, "classes": 10, "pools": [1, 2, 3]}, 10, 1.5e-3, 2,
        "MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; CC BY-SA 3.0)",
    ),
}  # fmt: skip


class Split(NamedTuple):
    """Images uint8 [N, C, H, W] and classes [N], to train on and to hold out."""

    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def digits_split(seed: int) -> Split:
    """Hold out one fifth of the digits, stratified by class."""
    images, labels = real_images("digits")
    assert labels is not None
    indices = torch.arange(len(labels)).numpy()
    seen, unseen = train_test_split(
        indices, test_size=0.2, stratify=labels.numpy(), random_state=seed
    )
    return Split(images[seen], labels[seen], images[unseen], labels[unseen])


def mnist_split(path: Path) -> Split:
    """Hold out the test images of MNIST."""
    mnist = read_mnist(path)
    return Split(mnist.train[:, None], mnist.train_y, mnist.test[:, None], mnist.test_y)


def train_classifier(name: str, split: Split, destination: Path, seed: int = 0) -> float:
    """Write the classifier `name` to `destination` (.safetensors), with its metadata.

    A seed gives the same weights on the same machine with the same versions.

    Returns
    -------
    float
        The accuracy on the held-out images.
    """
    recipe, row = RECIPES[name], known_classifiers()[name]
    with reproducible(seed):
        network = Classifier(**recipe.architecture, channels=row.channels, size=row.size)
        _fit(network, recipe, normalise(split.images, row.levels), split.labels)
        accuracy = _accuracy(network, normalise(split.held_out, row.levels), split.held_out_labels)
    metadata = {
        "name": f"{name}-classifier",
        "architecture": {"class": "Classifier", "kwargs": recipe.architecture},
        "licence": "Apache-2.0",
        "source": recipe.source,
        "training": {
            "seed": seed,
            "epochs": recipe.epochs,
            "batch": BATCH,
            "learning_rate": recipe.learning_rate,
            "weight_decay": WEIGHT_DECAY,
            "held_out_images": len(split.held_out),
            "held_out_accuracy": round(accuracy, 4),
            "command": f"python -m scripts.train.classifier {name} --seed {seed}",
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "scikit-learn": sklearn.__version__,
                "safetensors": safetensors.__version__,
            },
        },
    }
    write_weights(destination, network.state_dict(), metadata)
    return accuracy


def _fit(network: Classifier, recipe: Recipe, images: Tensor, labels: Tensor) -> None:
    rate = recipe.learning_rate
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, epochs=recipe.epochs, steps_per_epoch=-(-len(images) // BATCH)
    )
    network.train()
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            _, logits = network(_shifted(images[batch], recipe.shift))
            loss = functional.cross_entropy(logits, labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


def _shifted(images: Tensor, most: int) -> Tensor:
    """Shift the batch by up to `most` pixels: on digits this raised accuracy by one percent."""
    height, width = images.shape[-2:]
    row, column = torch.randint(2 * most + 1, (2,)).tolist()
    padded = functional.pad(images, (most,) * 4, value=-1)
    return padded[..., row : row + height, column : column + width]


@torch.no_grad()
def _accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([network(batch)[1].argmax(1) for batch in images.split(1000)])
    return (predicted == labels).double().mean().item()


@click.command(context_settings=CONTEXT)
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--data", metavar="PATH", help="MNIST: a folder or an .npz.")
@click.option("--dest", metavar="FILE", help="Path of the .safetensors.  [default: checkpoints/]")
@click.option("--seed", default=0, help="Seed of split, weights and batches.")
@clean_exit
def main(name: str, data: str | None, dest: str | None, seed: int) -> None:
    """Train the classifier of a data set and write its weights and metadata."""
    if name == "mnist" and data is None:
        raise ValueError("mnist needs its images: give --data PATH (see scripts.train.mnist)")
    split = mnist_split(Path(data)) if data is not None else digits_split(seed)
    path = Path(dest) if dest else known_classifiers()[name].path
    accuracy = train_classifier(name, split, path, seed)
    click.echo(f"held-out accuracy {accuracy:.2%}, written to {path}")


if __name__ == "__main__":
    main()

"""Make the reference of MNIST that comes with this repository: configs/references/mnist.npz.

    python -m scripts.train.mnist_reference --data PATH     # 20 CPU seconds

Moments of the 60 000 training images, features (float16) and classes of the 10 000 test images, as
the classifier of scripts/train/classifier.py sees them. PATH as in scripts.train.mnist.
"""

import os
from pathlib import Path

import click
import numpy as np
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import replacing
from metrics.extractors import load_extractor
from metrics.features import extract
from metrics.reference_files import write_reference
from metrics.references import ROWS, known_references
from metrics.statistics import Statistics, moments_of
from scripts.train.mnist_data import read_mnist

BATCH = 2000  # images per call of the classifier


@click.command(context_settings=CONTEXT)
@click.option("--data", metavar="PATH", required=True, help="MNIST: a folder or an .npz.")
@clean_exit
def main(data: str) -> None:
    """Write configs/references/mnist.npz."""
    mnist, row = read_mnist(Path(data)), known_references()["mnist"]
    assert row.statistics is not None
    networks = {"mnist": load_extractor("mnist")}
    seen, held_out = (
        extract(images[:, None].split(BATCH), networks).outputs["mnist"].features
        for images in (mnist.train, mnist.test)
    )
    moments = moments_of(seen)
    statistics = Statistics(
        moments.mean, moments.cov, moments.n, held_out.half(), networks["mnist"].sha256
    )
    path = ROWS.parent / row.statistics
    write_reference(
        path, {"mnist": statistics}, protocol=row.protocol, labels=mnist.test_y,
        image_size=row.image_size,
    )  # fmt: skip
    _compress(path)
    click.echo(f"wrote {path}: {moments.n} and {len(held_out)} images, {os.path.getsize(path)} B")


def _compress(path: Path) -> None:
    """Deflate the file: two thirds of the features are zero."""
    arrays = dict(np.load(path))
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

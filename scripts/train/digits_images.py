"""Write scikit-learn's digits, which `erk evaluate --ref digits` compares with, as an .npz.

    python -m scripts.train.digits_images       # configs/references/digits.npz
"""

import click
import numpy as np
from sklearn.datasets import load_digits

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import replacing
from metrics.references import ROWS, known_references


@click.command(context_settings=CONTEXT)
@clean_exit
def main() -> None:
    """Write images uint8 [1797, 8, 8], whose largest value 16 becomes 255, and their classes."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images * (255 / images.max())).astype(np.uint8).reshape(-1, 8, 8)
    name = known_references()["digits"].images
    assert name is not None
    with replacing(ROWS.parent / name) as file:
        np.savez_compressed(file, images=pixels, labels=labels.astype(np.uint8))
    click.echo(f"wrote {ROWS.parent / name}: {len(pixels)} images")


if __name__ == "__main__":
    main()

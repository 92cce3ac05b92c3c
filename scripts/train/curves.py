"""Draw the held-out loss of the MNIST networks during training: docs/images/training.png.

    python -m scripts.train.curves

The points are those of the cards, checkpoints/*.json, which the training wrote.
"""

from pathlib import Path

import click

from erk.analysis.plots import look, panels, png
from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import save_file
from erk.io.cache import load_json

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = {"mnist": "with classes", "mnist-uncond": "without classes"}


@click.command(context_settings=CONTEXT)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs/images/training.png",
              show_default="docs/images/training.png", help="The image.")  # fmt: skip
@clean_exit
def main(out: Path) -> None:
    """Draw the held-out loss over the training images."""
    save_file(out, draw())
    click.echo(f"wrote {out}")


def draw() -> bytes:
    """Return the figure as a PNG file."""
    with panels(1, 2.6) as (figure, axes):
        axis = axes[0, 0]
        for index, (name, label) in enumerate(NETWORKS.items()):
            curve = load_json(ROOT / "checkpoints" / f"{name}.json")["training"]["curve"]
            images = [point["images"] for point in curve]
            losses = [point["held_out"] for point in curve]
            axis.plot(images, losses, label=label, markersize=3, **look(index))
        axis.set(xlabel="training images", ylabel="denoising loss on test images", xscale="log",
                 yscale="log")  # fmt: skip
        axis.legend()
        return png(figure)


if __name__ == "__main__":
    main()

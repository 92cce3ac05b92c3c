"""Which digits the MNIST networks draw as they were asked to, class by class.

    python -m scripts.studies accuracy                        # results/accuracy.md and .json

The judge is the MNIST classifier, which recognises 99.3 % of the test images. The seeds are those
of no other table.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import torch

import erk
import metrics
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.settings import Settings
from erk.models.presets import Preset, find_preset
from metrics.extractors import load_extractor
from scripts.studies.guidance import samples
from scripts.studies.rows import RESULTS, Row, Table, shown

DATA = "mnist"
PRESETS = ("mnist", "mnist-cfg", "mnist-autog")
STEPS, FIRST = 32, 400_000


@click.command(context_settings=CONTEXT)
@click.option("--seeds", type=click.IntRange(100), default=5000, help="Number of samples.")
@click.option("--preset", "names", multiple=True, type=click.Choice(PRESETS), default=PRESETS,
              help="Preset; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "accuracy",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(seeds: int, names: Sequence[str], out: Path) -> None:
    """Measure how many samples of each class the classifier of MNIST recognises."""
    torch.set_num_threads(1)
    table = Table(out, text, **{"first seed": FIRST})
    for name in names:
        preset = find_preset(name)
        settings = Settings(
            solver="heun", schedule="edm", steps=STEPS, guidance=preset.guidance or 1.0
        )
        hashes = [erk.load_model(net).sha256 for net in (preset.net, preset.gnet) if net]
        key = ["accuracy", hashes, settings.identity(), seeds, metrics.evaluation.VERSION]
        wanted: Row = {"preset": name, "guidance": settings.guidance, "seeds": seeds}
        table.add(wanted, key, partial(measure, preset, settings, seeds))
    click.echo(text(table.rows))


def measure(preset: Preset, settings: Settings, seeds: int) -> Row:
    """Sample with balanced labels; accuracy of all and of each class, with binomial errors."""
    images, classes = samples(preset, settings, range(FIRST, FIRST + seeds))
    asked = torch.tensor(classes)
    logits = load_extractor(DATA)(images).logits
    assert logits is not None
    right = (logits.argmax(1) == asked).double()
    shares = {"all": right, **{str(c): right[asked == c] for c in asked.unique().tolist()}}
    result = metrics.evaluate(images, DATA, labels=classes)
    return {"fd": [result.values["fd"], result.errors["fd"]]} | {
        name: [x.mean().item(), x.std(unbiased=False).item() / len(x) ** 0.5]
        for name, x in shares.items()
    }


def text(rows: Sequence[Row]) -> str:
    """Format the rows."""
    return (
        "# Digits that are recognised as the class asked for\n\n"
        f"`python -m scripts.studies accuracy`: Heun, {STEPS} steps, no ERK-Guid, balanced labels, "
        f"seeds from {FIRST}; share of the images that a classifier takes for the class asked for, "
        "of all and of each class, ± standard error.\n\n" + shown(rows)
    )


if __name__ == "__main__":
    main()

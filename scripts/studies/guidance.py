"""Weights of model guidance for the embedded networks: FD and accuracy of each.

    python -m scripts.studies guidance                        # results/guidance.md and .json
    python -m scripts.studies guidance --preset digits-autog

The presets' weights in configs/models.yaml are those of the least FD here, of the weights above 1
(no guidance). Their seeds are those of no other table.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

import erk
import metrics
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.models.presets import Preset, find_preset
from scripts.studies.rows import RESULTS, Row, Table, shown

PRESETS = tuple(
    f"{network}-{guide}" for network in ("digits", "digits-early", "mnist")
    for guide in ("autog", "cfg")
)  # fmt: skip
WEIGHTS = (1.0, 1.25, 1.5, 2.0, 2.5)
FIRST, BATCH = 200_000, 250


@click.command(context_settings=CONTEXT)
@click.option("--seeds", type=click.IntRange(100), default=500, help="Number of samples.")
@click.option("--preset", "names", multiple=True, type=click.Choice(PRESETS), default=PRESETS,
              help="Preset; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "guidance",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(seeds: int, names: Sequence[str], out: Path) -> None:
    """Measure weights of model guidance on the embedded networks."""
    torch.set_num_threads(1)
    table = Table(out, text, **{"first seed": FIRST})
    for name in names:
        preset = find_preset(name)
        for guidance in WEIGHTS:
            settings = Settings(
                solver="heun", schedule="edm", steps=8, erk="auto", guidance=guidance
            )
            hashes = [erk.load_model(net).sha256 for net in (preset.net, preset.gnet) if net]
            key = ["guidance", hashes, settings.identity(), seeds, metrics.evaluation.VERSION]
            wanted: Row = {"preset": name, "guidance": guidance, "seeds": seeds}
            table.add(wanted, key, partial(measure, preset, settings, seeds))
    click.echo(text(table.rows))


def measure(preset: Preset, settings: Settings, seeds: int) -> Row:
    """Sample with balanced labels and measure FD and accuracy."""
    images, classes = samples(preset, settings, range(FIRST, FIRST + seeds))
    result = metrics.evaluate(images, preset.name.split("-")[0], labels=classes)
    return {name: [result.values[name], result.errors[name]] for name in ("fd", "accuracy")}


@torch.inference_mode()
def samples(preset: Preset, settings: Settings, seeds: range) -> tuple[Tensor, list[int]]:
    """Return images of an embedded network, uint8 [N, C, H, W], and their balanced classes."""
    model, guide = erk.load_model(preset.net), preset.gnet and erk.load_model(preset.gnet)
    classes = [seed % model.label_dim for seed in seeds]
    images = []
    for begin in range(0, len(seeds), BATCH):
        noise, _ = erk.noise_and_labels(seeds[begin : begin + BATCH], model)
        labels = torch.eye(model.label_dim)[classes[begin : begin + BATCH]]
        x0 = solve(settings.drift(model, labels, guide or None), noise, settings)
        images.append(model.decode(x0))
    return torch.cat(images), classes


def text(rows: Sequence[Row]) -> str:
    """Format the rows, with the presets' own weights marked."""
    marked = [
        {**row, "preset's": "*" if row["guidance"] == find_preset(row["preset"]).guidance else ""}
        for row in rows
    ]
    return (
        "# Weights of model guidance for the embedded networks\n\n"
        '`python -m scripts.studies guidance`: Heun, 8 steps, erk="auto", balanced labels; '
        "value ± standard error. *: the preset's weight, which has the least FD of those above "
        "1.\n\n" + shown(marked)
    )


if __name__ == "__main__":
    main()

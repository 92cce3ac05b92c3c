"""ERK-Guid with CFG, adaptive projected guidance (APG) and CFG++: FD and accuracy of each.

    python -m scripts.studies rules                           # results/rules.md and .json

The settings were fixed before the first sample: CFG and APG have the preset's weight, APG removes
all of the guidance along the denoised sample, CFG++ has the weight 0.6 of its paper. The seeds are
those of no other table.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import erk
import metrics
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.settings import Settings
from erk.models.presets import find_preset
from metrics.jackknife import paired_difference
from metrics.report import to_markdown
from scripts.paper.tables import limit
from scripts.studies.guidance import samples
from scripts.studies.rows import RESULTS, Row, Table

PRESET = find_preset("digits-early-cfg")
STEPS, FIRST = 8, 500_000
RULES: dict[str, dict[str, Any]] = {
    "CFG": {"guidance": PRESET.guidance},
    "APG": {"guidance": PRESET.guidance, "guidance_kind": "apg"},
    "CFG++": {"guidance": 0.6, "guidance_kind": "cfg++"},
}
PLAIN = "off"
CORRECTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {}, "w_stiff 1": {"w_stiff": 1.0, "w_con": 0.3}, "auto": {"erk": "auto"},
}  # fmt: skip
COLUMNS = ("fd", "precision", "recall", "accuracy")


@click.command(context_settings=CONTEXT)
@click.option("--seeds", type=click.IntRange(100), default=5000, help="Number of samples.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "rules",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(seeds: int, out: Path) -> None:
    """Measure ERK-Guid with every rule of model guidance."""
    torch.set_num_threads(1)
    table = Table(out, text, **{"first seed": FIRST})
    hashes = [erk.load_model(net).sha256 for net in (PRESET.net, PRESET.gnet) if net]
    for rule, guidance in RULES.items():
        for name, correction in CORRECTIONS.items():
            chosen = guidance | correction
            settings = Settings(solver="heun", schedule="edm", steps=STEPS, **chosen)
            key = ["rules", hashes, settings.identity(), seeds, metrics.evaluation.VERSION]
            wanted: Row = {"rule": rule, "ERK-Guid": name, "seeds": seeds}
            table.add(wanted, key, partial(measure, settings, seeds))
    click.echo(text(table.rows))


def measure(settings: Settings, seeds: int) -> Row:
    """Sample with balanced labels and measure all columns, with the replicates of their errors."""
    images, classes = samples(PRESET, settings, range(FIRST, FIRST + seeds))
    result = metrics.evaluate(images, "digits", labels=classes)
    values = {name: [result.values[name], result.errors[name]] for name in COLUMNS}
    return {**values, "replicates": {name: result.replicates[name] for name in COLUMNS}}


def text(rows: Sequence[Row]) -> str:
    """Format the rows, with the change of FD against the same rule without ERK-Guid."""
    plain = {(row["rule"], row["seeds"]): row for row in rows if row["ERK-Guid"] == PLAIN}
    lines = []
    for row in rows:
        line = {name: row[name] for name in ("rule", "ERK-Guid", "seeds")}
        line |= {name: tuple(row[name]) for name in COLUMNS}
        base = plain[row["rule"], row["seeds"]]
        if row is not base:
            line["change of fd, %"] = change(row, base)
        lines.append(line)
    names = ["rule", "ERK-Guid", "seeds", *COLUMNS, "change of fd, %"]
    count = len(rows) - len(plain)
    return (
        "# ERK-Guid with rules of model guidance\n\n"
        f"`python -m scripts.studies rules`: {PRESET.name}, Heun, {STEPS} steps, balanced labels, "
        f"seeds from {FIRST}. CFG and APG with weight {PRESET.guidance:g}, APG with eta 0 and no "
        "threshold, CFG++ with weight 0.6; w_con 0.3. Changes are against the same rule without "
        f"ERK-Guid, paired by seed; of {count} changes those of more than "
        f"{limit(max(count, 1)):.2f} standard errors are beyond noise (Bonferroni).\n\n"
        + to_markdown(lines, names)
    )


def change(row: Row, base: Row) -> tuple[float, float]:
    """Return the change of FD in percent of the base's, with the error of paired seeds."""
    pairs = [(one["fd"][0], one["replicates"]["fd"]) for one in (row, base)]
    difference = paired_difference(*pairs[0], *pairs[1])
    assert difference is not None
    return 100 * difference.value / pairs[1][0], 100 * difference.error / pairs[1][0]


if __name__ == "__main__":
    main()

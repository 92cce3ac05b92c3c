"""Cards of `erk calibrate` at few evaluations, beside plain Heun and the best published sampler.

    python -m scripts.studies cards                          # results/cards.md and .json
    python -m scripts.studies cards --preset digits --nfe 8

Errors are mean distances to the converged solution from the same noise on 32 seeds that neither
fit nor choice has seen; `stepwise`, `levels` and `end to end` are errors of the stages on the 32
seeds of the choice.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import erk
from erk.calibration import calibrate as calibration
from erk.calibration.card import Card
from erk.commands.cli import CONTEXT, clean_exit
from erk.models.presets import find_preset
from scripts.studies.rows import RESULTS, Row, Table, record

PRESETS = ("digits", "digits-early", "digits-cfg", "mnist")
BUDGETS = (5, 6, 8, 10, 15)
SEEDS = 32


@click.command(context_settings=CONTEXT)
@click.option("--preset", "presets", multiple=True, default=PRESETS,
              help="Preset; may be repeated.")  # fmt: skip
@click.option("--nfe", "budgets", multiple=True, type=int, default=BUDGETS,
              help="Number of evaluations; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "cards",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(presets: Sequence[str], budgets: Sequence[int], out: Path) -> None:
    """Calibrate a card for every preset and budget."""
    torch.set_num_threads(1)
    table = Table(out, text, seeds=SEEDS)
    for name in presets:
        preset = find_preset(name)
        model = erk.load_model(preset.net)
        guide = None if preset.gnet is None else erk.load_model(preset.gnet)
        networks = [one and one.sha256 for one in (model, guide)]
        for nfe in budgets:
            row = {"preset": name, "NFE": nfe}
            click.echo(row, err=True)
            key = ["cards", name, nfe, SEEDS, networks, preset.guidance, calibration.VERSION]
            table.add(row, key, partial(measure, model, guide, preset.guidance, nfe))
    click.echo(text(table.rows))


def text(rows: Sequence[Row]) -> str:
    """Format the rows."""
    return record(
        f"Cards of erk calibrate at {BUDGETS[0]} to {BUDGETS[-1]} evaluations",
        "`python -m scripts.studies cards`: mean distance to the converged solution from the same "
        f"noise, of plain Heun, of the best published sampler and of the card, on {SEEDS} seeds "
        "that were used for neither fit nor choice, ± standard error; ratio: card over published. "
        "stepwise, levels, end to end: the least distance of each stage of the calibration on the "
        f"{SEEDS} seeds of the choice.",
        rows,
    )


def measure(model: Any, guide: Any, guidance: float, nfe: int) -> Row:
    """Calibrate; return errors as (value, standard error) and what was chosen."""
    start = time.process_time()
    card = erk.calibrate(model, nfe, seeds=SEEDS, guide_model=guide, guidance=guidance)
    spent = time.process_time() - start
    row: Row = {name: _pair(card.errors.get(name)) for name in ("heun", "published")}
    row["published sampler"] = describe(card.report["contenders"][0])
    row |= {"card": _pair(card.errors["card"]), "ratio": _pair(card.errors["ratio"])}
    row["card's sampler"] = _chosen(card)
    stages = {"stepwise": ("published", "stepwise"), "levels": ("refined", "stepwise"),
              "end to end": ("refined", "end-to-end")}  # fmt: skip
    for column, (levels, correction) in stages.items():
        errors = [
            one["error"]["value"]
            for one in card.report["contenders"]
            if (one["levels"], one["correction"]) == (levels, correction)
        ]
        row[column] = min(errors, default=None)
    return row | {"CPU s": round(spent)}


def _pair(value: dict[str, float] | None) -> tuple[float, float] | None:
    return None if value is None else (value["value"], value["error"])


def _chosen(card: Card) -> str:
    one = min(card.report["contenders"], key=lambda c: c["error"]["value"])
    return f"{describe(one)}, {one['correction']}"


def describe(one: dict[str, Any]) -> str:
    """Name a contender's solver, order, levels and first step."""
    order = one["solver_options"].get("order", "")
    first = " + AFS" if one["afs"] else ""
    return f"{one['solver']}{order and f' {order}'}{first}, {one['schedule']}"


if __name__ == "__main__":
    main()

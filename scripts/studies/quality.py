"""Solver error against quality: what ERK-Guid gains by less error, and what by sharper samples.

    python -m scripts.studies quality                           # results/quality.json, .md and .png
    python -m scripts.studies quality --data mnist --steps 8    # some rows, into the same files

Rows are those of the paper's tables: FD, precision, recall, accuracy and the distance to the
converged solution. digits-early has the seeds of Table 2: both share what is measured. Fixed before
any other row was sampled: the weights; w_con, that of the released script; the control rows.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import write_file
from erk.io.cache import save_json
from scripts.paper.rows import Rows
from scripts.studies.quality_page import Measured, figure, text
from scripts.studies.quality_plan import NETWORKS, NUM, W_CON, experiment, restricted
from scripts.studies.rows import RESULTS


@click.command(context_settings=CONTEXT)
@click.option("--data", "networks", multiple=True, type=click.Choice(NETWORKS),
              default=NETWORKS[:4], help="A network; may be repeated.")  # fmt: skip
@click.option("--steps", "counts", multiple=True, type=click.Choice([*map(str, W_CON)]),
              default=[*map(str, W_CON)], help="Number of steps; may be repeated.")  # fmt: skip
@click.option("--num", type=click.IntRange(20), default=NUM, help="Images per row.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, metavar="DIR",
              help="Folder of the results.")  # fmt: skip
@clean_exit
def main(networks: Sequence[str], counts: Sequence[str], num: int, results: Path) -> None:
    """Measure what ERK-Guid gains by less error, and what by sharper samples."""
    torch.set_num_threads(1)
    chosen = [restricted(experiment(n, num, results), [*map(int, counts)]) for n in networks]
    try:
        Rows(chosen).measure()
    finally:  # of a run that is stopped, what is finished
        measured = write(num, results)
    click.echo(text(measured))


def write(num: int, results: Path) -> Measured:
    """Write the tables and the figure of the rows that are finished."""
    measured = finished(num, results)
    flat = {f"{n}: {row}": one for n, some in measured.items() for row, one in some.items()}
    write_file(results / "quality.json", save_json({"finished": flat}))
    write_file(results / "quality.md", text(measured).encode())
    write_file(results / "quality.png", figure(measured))
    return measured


def finished(num: int, results: Path) -> Measured:
    """Return the rows that are finished, of all networks."""
    experiments = [experiment(name, num, results) for name in NETWORKS]
    rows = Rows(experiments)
    found = [zip(one.config.rows, rows.finished(i), strict=True)
             for i, one in enumerate(experiments)]  # fmt: skip
    return {name: {row.name: one for row, one in some if one}
            for name, some in zip(NETWORKS, found, strict=True)}  # fmt: skip


if __name__ == "__main__":
    main()

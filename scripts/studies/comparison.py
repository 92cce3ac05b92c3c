"""Solvers with and without ERK-Guid at equal numbers of evaluations: one figure, one table.

    python -m scripts.studies comparison                        # digits and the exact toy
    python -m scripts.studies comparison --data digits-cfg      # more data, into the same table
    python -m scripts.studies comparison --num 16 --budget 6 --solver heun --results trial

Every solver, plain and with ERK-Guid in three modes, for each budget of evaluations: distance to
the converged solution from the same noise; FD of the images or, for the toy, sliced W1 to the
converged samples. Finished cells are kept in results/rows, so the same command continues.
"""

from pathlib import Path

import click

from erk.commands.cli import CONTEXT, clean_exit
from scripts.studies import comparison_cells, comparison_page, comparison_plan
from scripts.studies.rows import RESULTS

DATA = ("digits", "toy", "digits-cfg", "digits-autog")


@click.command(context_settings=CONTEXT)
@click.option("--data", multiple=True, type=click.Choice(DATA), default=("digits", "toy"),
              help="Data to sample; may be repeated.")  # fmt: skip
@click.option("--budget", "budgets", multiple=True, type=click.IntRange(3),
              help="Most evaluations per sample; may be repeated.  [default: 5 to 64]")  # fmt: skip
@click.option("--solver", "solvers", multiple=True, metavar="NAME",
              help="Some solvers only (heun, dpm2, ...); may be repeated.")  # fmt: skip
@click.option(
    "--num",
    type=click.IntRange(20),
    metavar="N",
    help="Samples of a cell.  [default: 512; above 16 evaluations 128; toy 2048]",
)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS,
              help="Folder of the files.", metavar="DIR")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the cost and stop.")
@clean_exit
def main(data: tuple[str, ...], budgets: tuple[int, ...], solvers: tuple[str, ...],
         num: int | None, results: Path, dry_run: bool) -> None:  # fmt: skip
    """Compare solvers with and without ERK-Guid at equal cost and write results/comparison.*"""
    cells = comparison_plan.cells_of(data, budgets or comparison_plan.BUDGETS, solvers, num)
    click.echo(comparison_cells.cost(cells, results))
    if dry_run:
        return
    try:
        comparison_cells.compute(cells, results)
    finally:  # a table of the finished cells, also of a run that is stopped
        for path in comparison_page.write_all(cells, results):
            click.echo(f"wrote {path}")

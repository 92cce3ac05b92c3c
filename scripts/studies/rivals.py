"""ERK-Guid against its rivals at equal numbers of evaluations: one figure, one table.

    python -m scripts.studies.rivals                        # digits and the exact toy
    python -m scripts.studies.rivals --data digits-cfg      # more data, into the same table
    python -m scripts.studies.rivals --num 16 --budget 6 --solver heun --results trial   # a quick look

Every solver, plain and with ERK-Guid in three ways, for each budget of evaluations: distance to
the converged solution from the same noise; FD of the pictures or, for the toy, sliced W1 to the
converged samples. Finished cells are files in results/rows, so that the same command goes on.
"""

from pathlib import Path

import click

from erk.commands.cli import CONTEXT, clean_exit
from scripts.paper.config import ROOT

DATA = ("digits", "toy", "digits-cfg", "digits-autog")


@click.command(context_settings=CONTEXT)
@click.option("--data", multiple=True, type=click.Choice(DATA), default=("digits", "toy"),
              help="What is sampled; may be repeated.")  # fmt: skip
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
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "results",
              help="Where the files go.", metavar="DIR")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it costs and stop.")
@clean_exit
def main(data: tuple[str, ...], budgets: tuple[int, ...], solvers: tuple[str, ...],
         num: int | None, results: Path, dry_run: bool) -> None:  # fmt: skip
    """Compare solvers with and without ERK-Guid at equal cost and write results/rivals.*"""
    from scripts.studies import rivals_cells, rivals_page, rivals_plan

    cells = rivals_plan.cells_of(data, budgets or rivals_plan.BUDGETS, solvers, num)
    click.echo(rivals_cells.cost(cells, results))
    if dry_run:
        return
    try:
        rivals_cells.make(cells, results)
    finally:  # a table of what is there, also of a run that is stopped
        for path in rivals_page.write_all(cells, results):
            click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()

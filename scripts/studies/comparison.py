"""Solvers at 3 to 20 evaluations: plain, with ERK-Guid, with cards; one page, results/comparison.*

    python -m scripts.studies comparison --dry-run              # the cost
    python -m scripts.studies comparison
    python -m scripts.studies comparison --data spectra --solver deis --nfe 5
    python -m scripts.studies comparison --num 20 --results trial

Distance to the converged solution from the same noise; FD and accuracy of the images or, for the
closed form, sliced W1 to its data. Finished cells are kept in results/rows, so the same command
continues; several processes with different --data or --solver share the work. The page has all
finished cells, whoever computed them.
"""

from pathlib import Path

import click

from erk.calibration.solver_error import EVALUATIONS
from erk.commands.cli import CONTEXT, clean_exit
from scripts.studies.comparison_cells import Cells, cost
from scripts.studies.comparison_page import write_all
from scripts.studies.comparison_plan import ALL, DATA, cells_of
from scripts.studies.rows import RESULTS


@click.command(context_settings=CONTEXT)
@click.option("--data", multiple=True, type=click.Choice([*DATA]), default=[*DATA],
              help="Data to sample; may be repeated.")  # fmt: skip
@click.option("--solver", "solvers", multiple=True, metavar="NAME",
              help="Only this solver (heun, ..., any); may be repeated.")  # fmt: skip
@click.option("--nfe", "nfes", multiple=True,
              type=click.Choice([str(n) for n in (*ALL, EVALUATIONS)]),
              help="Only this number of evaluations; may be repeated. "
              f"{EVALUATIONS}: the converged solution.")  # fmt: skip
@click.option("--num", type=click.IntRange(20), metavar="N",
              help="Samples per cell.  [default: 2000; with model guidance 1000]")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS,
              help="Folder of the results.", metavar="DIR")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the cost and stop.")
@clean_exit
def main(data: tuple[str, ...], solvers: tuple[str, ...], nfes: tuple[str, ...], num: int | None,
         results: Path, dry_run: bool) -> None:  # fmt: skip
    """Compare solvers plain, with ERK-Guid and with cards, at equal cost."""
    chosen = cells_of(data, solvers, [*map(int, nfes)], num)
    cells = Cells(results)
    click.echo(cost(cells.pending(chosen)))
    if dry_run:
        return
    try:
        cells.compute(chosen)
    finally:  # of a run that is stopped, what is finished
        for path in write_all(cells_of(num=num), Cells(results), results):
            click.echo(f"wrote {path}")

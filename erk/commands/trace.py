"""The command `trace`: plot stiffness, gate and error along sigma from generate --trace."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from erk.commands.cli import FiniteFloat, command, require_suffix

if TYPE_CHECKING:
    from erk.analysis.trace_plot import Trace


@command(
    "erk trace on.npz --w-con 0.3 --out trace.png",
    "erk trace on.npz off.npz --out both.png",
)
@click.argument("traces", nargs=-1, required=True, metavar="FILE.npz...")
@cloup.option("--out", required=True, metavar="FILE.png", help="The figure to write.")
@cloup.option("--w-con", type=FiniteFloat(0), help="Also draw this threshold of the stiffness.")
def main(traces: Sequence[str], out: str, w_con: float | None) -> None:
    """Plot traces, the files of erk generate --trace, into the same panels.

    Curves are medians over the seeds; bands reach from quartile to quartile.
    """
    require_suffix("--out", out, ".png")
    from erk.io.atomic import check_target, save_file
    from erk.io.text import printable

    check_target(out, *traces)
    if w_con == 0:
        raise ValueError(f"--w-con {w_con:g} is not on a logarithmic axis; leave it out")
    named = {printable(Path(name).stem): read_trace(Path(name)) for name in traces}
    if len(named) < len(traces):
        raise ValueError("two traces have one name; rename one of them")
    from erk.analysis.trace_plot import plot_trace

    click.echo(f"wrote {save_file(out, plot_trace(named, w_con))}")


def read_trace(path: Path) -> "Trace":
    """Return sigmas [S] and stiffness, gate, df, push [S, N] of a file.

    Raises FileNotFoundError, or ValueError for another file or one without a pair.
    """
    import numpy as np

    from erk.analysis.trace_plot import COLUMNS, check_trace
    from metrics.npz import read_npz

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a trace of erk generate --trace")
    try:
        trace = read_npz(path, ("sigmas", *COLUMNS))
        check_trace(trace, str(path))
    except ValueError as error:
        raise ValueError(f"{path} is no trace: write one with erk generate --trace") from error
    if np.isnan(trace["stiffness"]).all():
        raise ValueError(f"{path} has no step with a pair, so nothing to plot: take more steps")
    return trace


if __name__ == "__main__":
    main()

"""Stiffness, gate and error along sigma, from the traces that generate.py writes; a PNG.

    python generate.py --preset digits --seeds 0-63 --steps 16 --w-stiff 0.5 --trace on.npz
    erk trace on.npz --w-con 0.5 --out trace.png

Curves are medians over the seeds, bands reach from quartile to quartile. Several traces are drawn
into the same panels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from erk.commands.cli import CONTEXT, clean_exit
from metrics.npz import read_npz

Trace = Mapping[str, np.ndarray]
COLUMNS = ("stiffness", "gate", "df", "push")


@click.command(context_settings=CONTEXT)
@click.argument("traces", nargs=-1, required=True, metavar="FILE.npz...")
@click.option("--out", required=True, metavar="FILE.png", help="The picture.")
@click.option("--w-con", type=float, help="Draw this threshold of the stiffness.")
@clean_exit
def main(traces: Sequence[str], out: str, w_con: float | None) -> None:
    """Plot the TRACES, the files of generate.py --trace."""
    if not out.endswith(".png"):
        raise ValueError(f"--out {out} must end in .png; rename it")
    if w_con is not None and not w_con > 0:
        raise ValueError(f"--w-con {w_con:g} has no place on a logarithmic axis; leave it out")
    found = {Path(name).stem: read_trace(Path(name)) for name in traces}
    if len(found) < len(traces):
        raise ValueError("two traces have one name; rename one of them")
    from metrics.table import write

    click.echo(f"wrote {write(out, plot(found, w_con))}")


def read_trace(path: Path) -> Trace:
    """sigmas [S], seeds [N] and stiffness, gate, df, push [S, N]; ValueError for another file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a trace of generate.py --trace")
    try:
        trace = read_npz(path, ("sigmas", "seeds", *COLUMNS))
        shape = (len(trace["sigmas"]), len(trace["seeds"]))
        if {trace[name].shape for name in COLUMNS} != {shape} or 0 in shape:
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no trace: make one with generate.py --trace") from error
    if np.isnan(trace["stiffness"]).all():
        raise ValueError(f"{path} has no step with a pair, so nothing to plot: take more steps")
    return trace


def plot(traces: Mapping[str, Trace], w_con: float | None = None) -> bytes:
    """The figure, a PNG file: three panels over sigma, which falls rightwards."""
    from erk.analysis.plots import GREY, look, panels, png

    with panels(3, 3.0) as (figure, ((stiffness, gate, error),)):
        for i, (name, trace) in enumerate(traces.items()):
            colour = look(i)["color"]
            _curve(stiffness, trace, "stiffness", name, color=colour)
            known, share = ~np.isnan(trace["gate"]).any(1), trace["gate"].mean(1)
            gate.plot(trace["sigmas"][known], share[known], color=colour, marker=".")
            _curve(error, trace, "df", "drift difference", color=colour)
            _curve(error, trace, "push", "correction", color=colour, linestyle=":")
        if w_con is not None:
            stiffness.axhline(w_con, color=GREY, linestyle="--", linewidth=1, label="w_con")
        stiffness.set(title="estimated stiffness", yscale="log")
        gate.set(title="share of samples corrected", ylim=(-0.04, 1.04))
        error.set(title="embedded error of the pair", yscale="log")
        for panel in (stiffness, gate, error):
            panel.set(xscale="log", xlabel="noise level sigma")
            panel.invert_xaxis()
        stiffness.legend(), error.legend()
        return png(figure)


def _curve(panel: Any, trace: Trace, name: str, label: str, **how: Any) -> None:
    """Median and quartiles; steps where all are 0 or NaN have no place on a logarithmic axis.

    A panel's legend names each label once.
    """
    values = trace[name]
    known = (values > 0).any(1)
    sigmas, values = trace["sigmas"][known], values[known]
    if not len(sigmas):
        return
    low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=1)
    is_named = label in panel.get_legend_handles_labels()[1]
    panel.plot(sigmas, middle, marker=".", label=None if is_named else label, **how)
    panel.fill_between(sigmas, low, high, color=how["color"], alpha=0.18, linewidth=0)


if __name__ == "__main__":
    main()

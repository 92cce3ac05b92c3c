"""Figures 4 and 6: sampled rows like a table's, and the curves they make."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from matplotlib.axes import Axes

from erk.analysis.plots import COLOURS, GREY, look, panels, png
from erk.method.guidance import SCALES
from metrics.table import cell, write
from scripts.paper.config import Config, Request
from scripts.paper.pages import page_of
from scripts.paper.plan import describe
from scripts.paper.render import write_page
from scripts.paper.sampled import measure_rows

LABELS = {"fd": "FD", "fid": "FID", "fd_dinov2": "FD-DINOv2", "accuracy": "recognised share"}
Z = (-3.0, 3.0)  # range of Figure 6a
FORMULAS = {"quadratic": "$z^2$", "abs": "$|z|$", "alpha": r"$\alpha(z)$"}


class Show(NamedTuple):
    """How a figure is drawn, and by which setting its rows fall into groups."""

    picture: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], bytes]
    group: str


def run(config: Config, request: Request) -> list[Path]:
    """Measure the chosen rows, draw all that are there and write the figure; the files written.

    With ``shard`` only features are made. Raises ValueError or OSError with one sentence.
    """
    if request.dry_run:
        click.echo(describe(config, request))
        return []
    found = measure_rows(config, request)
    if found is None:
        return []
    page = page_of(config, request, found)
    made = [one["settings"] | one for one in page.data if one["measured"]]
    metrics, show = config.options["metrics"][request.scale], FIGURES[config.options["show"]]
    place = write(request.results / f"{page.name}.png", show.picture(made, metrics))
    page = page._replace(
        blocks=[block for block in page.blocks if len(block.columns) > 1],  # none are published
        notes=[*least(made, show.group, metrics[0]), *page.notes, f"The paper: {config.paper}"],
        files=[place.name],
    )
    return [*write_page(request.results, page), place]


def least(rows: Sequence[Mapping[str, Any]], group: str, metric: str) -> list[str]:
    """A note on the row of least ``metric`` in each group, none without guided rows."""
    guided = [row for row in rows if metric in row["paired"]]
    notes = []
    for value in dict.fromkeys(row[group] for row in guided):
        best = min((row for row in guided if row[group] == value), key=lambda r: r["ours"][metric])
        change = best["paired"][metric]
        told = cell((change["value"], change["error"]))
        beyond = "beyond noise" if change["exceeds"] else "not beyond noise"
        notes.append(f"{group} {value}: least {LABELS[metric]} {cell(best['ours'][metric])} at "
                     f"{best['name']}, {told} to Heun, {beyond}.")  # fmt: skip
    if notes:
        notes.append("The least of several rows, chosen on the seeds that it is measured on, is "
                     "flattered by the choice.")  # fmt: skip
    return notes


def over_w_con(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> bytes:
    """Figure 4: a curve over w_con for each w_stiff; a panel per metric and number of steps."""
    steps = sorted({row["steps"] for row in rows})
    with panels(len(steps), height=2.9 * len(metrics), rows=len(metrics)) as (figure, axes):
        for i, metric in enumerate(metrics):
            for axis, count in zip(axes[i], steps, strict=True):
                _curves(axis, [row for row in rows if row["steps"] == count], metric)
                axis.set(title=f"{count} steps", xlabel="$w_{con}$", ylabel=LABELS[metric])
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]))
        return png(figure)


def _curves(axis: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    for row in rows:
        if row["w_stiff"] == 0:
            axis.axhline(row["ours"][metric], color=GREY, linestyle="--", label="Heun")
    weights = sorted({row["w_stiff"] for row in rows} - {0})
    for i, weight in enumerate(weights):
        own = sorted((row["w_con"], *_value(row, metric)) for row in rows
                     if row["w_stiff"] == weight)  # fmt: skip
        x, y, error = zip(*own, strict=True)
        axis.errorbar(x, y, error, **look(i), capsize=2, label=f"$w_{{stiff}}$ = {weight:g}")
    ticks = sorted({row["w_con"] for row in rows if row["w_stiff"] > 0})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def scalings(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> bytes:
    """Figure 6: (a) how the scalings grow, (b) what they do to two metrics."""
    with panels(2, height=3.4) as (figure, axes):
        _growth(axes[0, 0])
        _trade(axes[0, 1], rows, *metrics)
        return png(figure)


def _growth(axis: Axes) -> None:
    z = torch.linspace(*Z, 301, dtype=torch.float64)
    axis.plot(z, SCALES["alpha"](z), color=COLOURS[0], label=FORMULAS["alpha"])
    axis.plot(z, SCALES["quadratic"](z) / 6, color=COLOURS[1], linestyle="--", label="$z^2/6$")
    axis.set(title=r"(a) $\alpha(z)$ and its first term", xlabel="$z$")
    axis.legend(loc="upper center")


def _trade(axis: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
    for row in rows:
        if row["w_stiff"] == 0:
            axis.plot(row["ours"][x], row["ours"][y], "*", color="black", markersize=11,
                      label="Heun", linestyle="none")  # fmt: skip
    for i, (scale, formula) in enumerate(FORMULAS.items()):
        own = sorted((row["w_stiff"], row["ours"][x], row["ours"][y]) for row in rows
                     if row["w_stiff"] > 0 and row["erk_scale"] == scale)  # fmt: skip
        if own:
            weights, first, second = zip(*own, strict=True)
            label = f"{formula}, $w_{{stiff}}$ {weights[0]:g} to {weights[-1]:g}"
            axis.plot(first, second, **look(i), label=label)
    axis.set(title="(b) from Heun on with rising weight", xlabel=LABELS[x], ylabel=LABELS[y])
    axis.legend(loc="best")


def _value(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """A row's value and the standard error of its difference to the row without ERK-Guid."""
    paired = row["paired"].get(metric)
    return row["ours"][metric], 0.0 if paired is None else paired["error"]


FIGURES = {"over_w_con": Show(over_w_con, "steps"), "scalings": Show(scalings, "erk_scale")}

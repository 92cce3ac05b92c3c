"""Figures 4, 6, 8 and 9: curves of sampled rows, and images of the same seeds.

Every row of Figures 8 and 9 is also one sheet of images; all sheets have the same layout, so that
a slider can exchange them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from erk.analysis.plots import COLOURS, GREY, look, panels, png
from erk.generation.images import png_bytes, sheet
from erk.generation.job import Job
from erk.generation.options import open_job, plan_job
from erk.generation.sampling import generate
from erk.io.atomic import save_file
from erk.method.guidance import SCALES
from erk.method.settings import Settings
from erk.runtime.provenance import provenance
from metrics.report import number
from scripts.paper.config import Grid, Request, Sweep, chosen_rows, page_name
from scripts.paper.page import Page, Table, significant, write_page
from scripts.paper.plan import describe, options_of_row
from scripts.paper.rows import Finished
from scripts.paper.tables import Content, page_of, write_content

LABELS = {"fd": "FD", "fid": "FID", "fd_dinov2": "FD-DINOv2", "accuracy": "accuracy",
          "distance": "distance to the converged solution"}  # fmt: skip
Z = (-3.0, 3.0)  # range of Figure 6a
FORMULAS = {"quadratic": "$z^2$", "abs": "$|z|$", "alpha": r"$\alpha(z)$"}
LARGEST = 256  # pixels of an image's side in the figure; sheets keep every pixel
SMALLEST = 48  # and at least
TRACED = ("stiffness", "gate", "push")  # of the trace
QUARTILES = (0.25, 0.5, 0.75)

Row = Mapping[str, Any]


def write_sweep(config: Sweep, request: Request, finished: Sequence[Finished]) -> list[Path]:
    """Draw all rows that are finished, write Figure 4 or 6 and return the paths."""
    page = page_of_sweep(config, request, finished)
    return write_page(request.results, page, drawn(config, page))


def drawn(config: Sweep, page: Page) -> dict[str, bytes]:
    """Return the image of a page of Figure 4 or 6, a PNG file by its name."""
    draw, metrics = SWEEPS[config.options.show].draw, config.options.metrics
    return {file: draw(_measured(page), metrics) for file in page.files}


def page_of_sweep(config: Sweep, request: Request, finished: Sequence[Finished]) -> Page:
    """Return the page of Figure 4 or 6, whose rows are finished or still missing ({})."""
    page = page_of(config, request, finished)
    group, metric = SWEEPS[config.options.show].group, config.options.metrics[0]
    page.notes = [*least(_measured(page), group, metric), *page.notes,
                  f"The paper: {config.paper}"]  # fmt: skip
    page.files = [f"{page.name}.png"] if _measured(page) else []
    return page


def _measured(page: Page) -> list[Row]:
    return [one["settings"] | one for one in page.rows if one["measured"]]


def least(rows: Sequence[Row], group: str, metric: str) -> list[str]:
    """Return a note on the row of least ``metric`` of each group, none without guided rows."""
    guided = [row for row in rows if metric in row["paired"] and row["w_stiff"] > 0]
    notes = []
    for value in dict.fromkeys(row[group] for row in guided):
        best = min((row for row in guided if row[group] == value), key=lambda r: r["ours"][metric])
        change = best["paired"][metric]
        difference = number((change["value"], change["error"]))
        beyond = "beyond noise" if change["exceeds"] else "not beyond noise"
        notes.append(f"With {group} {value} the least {LABELS[metric]} is "
                     f"{number(best['ours'][metric])}, at {best['name']}; minus Heun's it is "
                     f"{difference}, {beyond}.")  # fmt: skip
    if notes:
        notes.append("The row of least value is chosen on the seeds that it is measured on, which "
                     "biases its value low.")  # fmt: skip
    return notes


def over_w_con(rows: Sequence[Row], metrics: Sequence[str]) -> bytes:
    """Draw Figure 4: one curve over w_con per w_stiff, a panel per metric and number of steps."""
    steps = sorted({row["steps"] for row in rows})
    with panels(len(steps), height=2.9 * len(metrics), rows=len(metrics)) as (figure, axes):
        for i, metric in enumerate(metrics):
            for axis, count in zip(axes[i], steps, strict=True):
                _curves(axis, [row for row in rows if row["steps"] == count], metric)
                axis.set(title=f"{count} steps", xlabel="$w_{con}$", ylabel=LABELS[metric])
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]))
        return png(figure)


def _curves(axis: Axes, rows: Sequence[Row], metric: str) -> None:
    for row in rows:
        if row["w_stiff"] == 0:
            style, name = (":", "auto") if row.get("erk") else ("--", "Heun")
            axis.axhline(row["ours"][metric], color=GREY, linestyle=style, label=name)
    weights = sorted({row["w_stiff"] for row in rows} - {0})
    for i, weight in enumerate(weights):
        points = sorted((row["w_con"], *_value(row, metric)) for row in rows
                     if row["w_stiff"] == weight)  # fmt: skip
        x, y, error = zip(*points, strict=True)
        axis.errorbar(x, y, error, **look(i), capsize=2, label=f"$w_{{stiff}}$ = {weight:g}")
    ticks = sorted({row["w_con"] for row in rows if row["w_stiff"] > 0})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def scalings(rows: Sequence[Row], metrics: Sequence[str]) -> bytes:
    """Draw Figure 6: (a) the scalings over z, (b) two metrics with each scaling."""
    with panels(2, height=3.8) as (figure, axes):
        _growth(axes[0, 0])
        _trade(axes[0, 1], rows, *metrics)
        handles = axes[0, 1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]))
        return png(figure)


def _growth(axis: Axes) -> None:
    z = torch.linspace(*Z, 301, dtype=torch.float64)
    axis.plot(z, SCALES["alpha"](z), color=COLOURS[0], label=FORMULAS["alpha"])
    axis.plot(z, SCALES["quadratic"](z) / 6, color=COLOURS[1], linestyle="--", label="$z^2/6$")
    axis.set(title=r"(a) $\alpha(z)$ and its first term", xlabel="$z$")
    axis.legend(loc="upper center")


def _trade(axis: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    for row in rows:
        if row["w_stiff"] == 0:
            mark, name = ("P", "auto") if row.get("erk") else ("*", "Heun")
            axis.plot(row["ours"][x], row["ours"][y], mark, color="black", markersize=11,
                      label=name, linestyle="none")  # fmt: skip
    for i, (scale, formula) in enumerate(FORMULAS.items()):
        points = sorted((row["w_stiff"], row["ours"][x], row["ours"][y]) for row in rows
                     if row["w_stiff"] > 0 and row["erk_scale"] == scale)  # fmt: skip
        if points:
            weights, first, second = zip(*points, strict=True)
            label = f"{formula}, $w_{{stiff}}$ {weights[0]:g} to {weights[-1]:g}"
            axis.plot(first, second, **look(i), label=label)
    axis.set(title="(b) from Heun on with rising weight", xlabel=LABELS[x], ylabel=LABELS[y])


def _value(row: Row, metric: str) -> tuple[float, float]:
    """Return a row's value and the standard error of its difference to the row without ERK-Guid."""
    paired = row["paired"].get(metric)
    return row["ours"][metric], 0.0 if paired is None else paired["error"]


class Show(NamedTuple):
    """The drawing of a sweep, and the setting that groups its rows."""

    draw: Callable[[Sequence[Row], Sequence[str]], bytes]
    group: str


SWEEPS = {"over_w_con": Show(over_w_con, "steps"), "scalings": Show(scalings, "erk_scale")}


class Sheet(NamedTuple):
    """The images of one row."""

    name: str
    settings: Settings
    images: np.ndarray  # uint8 [N, C, H, W]
    classes: list[int] | None  # of the images; None: the network has none
    nfe: float
    traces: dict[str, list[Any]]  # see ``along``

    @property
    def w_con(self) -> float | None:
        """None without ERK-Guid, where it means nothing."""
        return self.settings.w_con if self.settings.w_stiff else None

    @property
    def weight(self) -> float | str:
        """Return w_stiff, or "auto"."""
        return self.settings.w_stiff if self.settings.erk is None else "auto"


def run_grid(config: Grid, request: Request) -> list[Path]:
    """Sample the chosen rows and write Figure 8 or 9 and its sheets."""
    rows = chosen_rows(config, request.rows)
    options = [options_of_row(config, row, request) for row in rows]
    if request.dry_run:
        click.echo(f"{config.name}: images of the seeds {options[0]['seeds']}\n")
        click.echo(describe(config, request))
        return []
    job = open_job(options[0])
    sheets = [
        sample(job, row.name, plan_job(one).settings)
        for row, one in zip(rows, options, strict=True)
    ]
    name, columns = page_name(config, request), config.options.columns
    files = {one.name: f"{name}/{_file(one, sheets)}.png" for one in sheets}
    data: list[dict[str, Any]] = [
        {"row": one.name, "steps": one.settings.steps, "w_stiff": one.weight,
         "w_con": one.w_con, "NFE": one.nfe, "sheet": files[one.name],
         "classes": one.classes, "traces": one.traces}
        for one in sheets
    ]  # fmt: skip
    shown = list(data[0])[:-2]
    table = Table(
        caption=f"Every row has the seeds {options[0]['seeds']}.",
        columns=shown,
        rows=[{name: row[name] for name in shown} for row in data],
    )
    content = Content([table], data, _equals(sheets), {"": draw_grid(sheets, columns)})
    made_by = provenance(job.model.device)
    pages = write_content(config, request, options[0]["preset"], content, made_by)
    return [
        *pages,
        *(
            save_file(request.results / files[one.name], png_bytes(_tile(one.images, columns)))
            for one in sheets
        ),
    ]


def sample(job: Job, name: str, settings: Settings) -> Sheet:
    """Sample the job's seeds with other settings."""
    batches = list(generate(replace(job, settings=settings), trace=True))
    images = torch.cat([batch.wait() for batch in batches]).numpy()
    classes = [int(c) for b in batches if b.classes is not None for c in b.classes] or None
    traces = along(settings.sigmas(job.model), [batch.trace or {} for batch in batches])
    return Sheet(name, settings, images, classes, batches[0].nfe, traces)


def along(sigmas: Tensor, traces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[Any]]:
    """Summarize the steps that have a pair over the seeds.

    sigma, quartiles of the stiffness, the share of seeds that are corrected, and the median norm
    of their corrections (0 where none is).
    """
    rho, gate, push = (np.concatenate([trace[name] for trace in traces], 1) for name in TRACED)
    steps = np.flatnonzero(~np.isnan(rho).any(1))
    return {
        "sigma": [significant(sigmas[i].item()) for i in steps],
        "stiffness": [[significant(q) for q in np.quantile(rho[i], QUARTILES)] for i in steps],
        "corrected": [significant(gate[i].mean()) for i in steps],
        "push": [
            significant(np.median(push[i][gate[i] > 0])) if gate[i].any() else 0.0 for i in steps
        ],
    }


def draw_grid(sheets: Sequence[Sheet], columns: int) -> bytes:
    """Draw all sheets as a PNG: w_stiff downwards, w_con to the right.

    Images without ERK-Guid are repeated in every column.
    """
    pages = {(c.weight, c.w_con): _tile(_shrunk(c.images), columns) for c in sheets}
    weights = list(dict.fromkeys(w for w, _ in pages))
    thresholds: list[float | None] = [*_thresholds(sheets)] or [None]
    _, height, width = next(iter(pages.values())).shape
    inches = 6.2 * height / width / len(thresholds) * len(weights) + 0.3
    with panels(len(thresholds), height=inches, rows=len(weights)) as (figure, axes):
        for i, w in enumerate(weights):
            label = w if isinstance(w, str) else f"$w_{{stiff}}$ {w:g}"
            axes[i, 0].set_ylabel(label, rotation=0, ha="right", va="center")
            for j, c in enumerate(thresholds):
                _show(axes[i, j], pages.get((w, c), pages.get((w, None))))
                if i == 0 and c is not None:
                    axes[i, j].set_title(f"$w_{{con}}$ {c:g}")
        return png(figure)


def _show(axis: Any, page: np.ndarray | None) -> None:
    if page is not None:
        look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
        axis.imshow(page[0] if len(page) == 1 else page.transpose(1, 2, 0), **look)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _tile(images: np.ndarray, columns: int) -> np.ndarray:
    return sheet(images, min(columns, len(images)), max(1, SMALLEST // images.shape[2]))


def _shrunk(images: np.ndarray) -> np.ndarray:
    """Average images down to at most LARGEST pixels a side."""
    n, c, h, w = images.shape
    step = -(-h // LARGEST)
    parts = images[:, :, : h // step * step, : w // step * step]
    parts = parts.reshape(n, c, h // step, step, w // step, step)
    return parts.mean((3, 5)).round().astype(np.uint8)


def _thresholds(sheets: Sequence[Sheet]) -> list[float]:
    return sorted({one.w_con for one in sheets if one.w_con is not None})


def _file(one: Sheet, sheets: Sequence[Sheet]) -> str:
    """Return 0.5 for w_stiff 0.5, and 0.5-0.3 where rows differ in w_con too."""
    only_one = one.w_con is None or len(_thresholds(sheets)) == 1
    weight = one.weight if isinstance(one.weight, str) else f"{one.weight:g}"
    return weight + ("" if only_one else f"-{one.w_con:g}")


def _equals(sheets: Sequence[Sheet]) -> list[str]:
    """Return a note on rows whose images are identical."""
    groups: dict[bytes, list[str]] = {}
    for one in sheets:
        groups.setdefault(one.images.tobytes(), []).append(one.name)
    same = ["; ".join(names) for names in groups.values() if len(names) > 1]
    return [f"Identical in every pixel: {one}." for one in same]

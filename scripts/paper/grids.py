"""Figures 8 and 9: pictures of the same seeds over w_stiff and w_con.

Every row's pictures are also a sheet of their own; all sheets have one layout, so that a slider can
exchange them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from erk.analysis.plots import panels, png
from erk.generation.images import png_bytes, sheet
from erk.generation.job import Job
from erk.generation.options import networks_of, open_job, settings_of
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.runtime.provenance import provenance
from metrics.table import write
from scripts.paper.config import Config, Request, chosen_rows, page_name
from scripts.paper.figure_page import FigureContent, write_figure
from scripts.paper.plan import describe, options_of_row
from scripts.paper.render import Block, sixth

LARGEST = 256  # pixels of an image's side in the figure; sheets keep every pixel
SMALLEST = 48  # and at least
TRACED = ("stiffness", "gate", "push")  # of guides.telemetry
QUARTILES = (0.25, 0.5, 0.75)


class Cell(NamedTuple):
    """The pictures of one row."""

    name: str
    settings: Settings
    images: np.ndarray  # uint8 [N, C, H, W]
    classes: list[int] | None  # of the pictures; None: the network has none
    nfe: float
    traces: dict[str, list[Any]]  # see ``along``

    @property
    def w_con(self) -> float | None:
        """None without ERK-Guid, where it means nothing."""
        return self.settings.w_con if self.settings.w_stiff else None


def run(config: Config, request: Request) -> list[Path]:
    """Sample the chosen rows and write the figure and its sheets; the files written."""
    rows = chosen_rows(config, request.rows)
    options = [options_of_row(config, row, request) for row in rows]
    if request.dry_run:
        click.echo(f"{config.name}: pictures of the seeds {options[0]['seeds']}\n")
        click.echo(describe(config, request))
        return []
    job = open_job(options[0])
    cells = [
        sample(job, row.name, settings_of(one, networks_of(one)[2]))
        for row, one in zip(rows, options, strict=True)
    ]
    name, columns = page_name(config, request), config.options["columns"]
    places = {cell.name: f"{name}/{_file(cell, cells)}.png" for cell in cells}
    files = [
        write(request.results / places[cell.name], png_bytes(_sheet(cell.images, columns)))
        for cell in cells
    ]
    data = [
        {"row": cell.name, "steps": cell.settings.steps, "w_stiff": cell.settings.w_stiff,
         "w_con": cell.w_con, "NFE": cell.nfe, "sheet": places[cell.name],
         "classes": cell.classes, "traces": cell.traces}
        for cell in cells
    ]  # fmt: skip
    block = Block(f"Every row has the seeds {options[0]['seeds']}.", list(data[0])[:-2], data)
    content = FigureContent([block], data, _equals(cells), picture(cells, columns))
    made_by = [provenance(job.model.device)]
    return [*write_figure(config, request, options[0]["preset"], content, made_by), *files]


def sample(job: Job, name: str, settings: Settings) -> Cell:
    """The pictures of the job's seeds with other settings."""
    made = list(generate(replace(job, settings=settings), trace=True))
    images = torch.cat([batch.wait() for batch in made]).numpy()
    classes = [int(c) for b in made if b.classes is not None for c in b.classes] or None
    traces = along(settings.sigmas(job.model), [batch.trace or {} for batch in made])
    return Cell(name, settings, images, classes, made[0].nfe, traces)


def along(sigmas: Tensor, traces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[Any]]:
    """The steps that have a pair: sigma, quartiles of the stiffness over the seeds, the share of
    seeds that are corrected, and the median norm of their corrections (0: none is).
    """
    rho, gate, push = (np.concatenate([trace[name] for trace in traces], 1) for name in TRACED)
    steps = np.flatnonzero(~np.isnan(rho).any(1))
    return {
        "sigma": [sixth(sigmas[i].item()) for i in steps],
        "stiffness": [[sixth(q) for q in np.quantile(rho[i], QUARTILES)] for i in steps],
        "corrected": [sixth(gate[i].mean()) for i in steps],
        "push": [sixth(np.median(push[i][gate[i] > 0])) if gate[i].any() else 0.0 for i in steps],
    }


def picture(cells: Sequence[Cell], columns: int) -> bytes:
    """A PNG of all cells: w_stiff downwards, w_con to the right.

    Pictures without ERK-Guid stand in every column.
    """
    pages = {(c.settings.w_stiff, c.w_con): _sheet(_shrunk(c.images), columns) for c in cells}
    weights = sorted({w for w, _ in pages})
    thresholds = _thresholds(cells) or [None]
    _, height, width = next(iter(pages.values())).shape
    inches = 6.2 * height / width / len(thresholds) * len(weights) + 0.3
    with panels(len(thresholds), height=inches, rows=len(weights)) as (figure, axes):
        for i, w in enumerate(weights):
            axes[i, 0].set_ylabel(f"$w_{{stiff}}$ {w:g}", rotation=0, ha="right", va="center")
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


def _sheet(images: np.ndarray, columns: int) -> np.ndarray:
    return sheet(images, min(columns, len(images)), max(1, SMALLEST // images.shape[2]))


def _shrunk(images: np.ndarray) -> np.ndarray:
    """Images of at most LARGEST pixels a side, every pixel the mean of those it stands for."""
    n, c, h, w = images.shape
    step = -(-h // LARGEST)
    parts = images[:, :, : h // step * step, : w // step * step]
    parts = parts.reshape(n, c, h // step, step, w // step, step)
    return parts.mean((3, 5)).round().astype(np.uint8)


def _thresholds(cells: Sequence[Cell]) -> list[float]:
    return sorted({cell.w_con for cell in cells if cell.w_con is not None})


def _file(cell: Cell, cells: Sequence[Cell]) -> str:
    """0.5 for w_stiff 0.5; 0.5-0.3 where rows differ in w_con, too."""
    only_one = cell.w_con is None or len(_thresholds(cells)) == 1
    return f"{cell.settings.w_stiff:g}" + ("" if only_one else f"-{cell.w_con:g}")


def _equals(cells: Sequence[Cell]) -> list[str]:
    """A note on rows whose pictures are the same in every pixel."""
    groups: dict[bytes, list[str]] = {}
    for cell in cells:
        groups.setdefault(cell.images.tobytes(), []).append(cell.name)
    same = ["; ".join(names) for names in groups.values() if len(names) > 1]
    return [f"The same in every pixel: {one}." for one in same]

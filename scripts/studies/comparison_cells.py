"""The cells of the comparison: their cost, their computation, and where they are kept."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import erk
from erk.calibration import calibrate as calibration
from erk.calibration.card import Card, content_of
from erk.calibration.fit import USUAL
from erk.calibration.parts import Parts
from erk.calibration.solver_error import EVALUATIONS, reference_points
from erk.generation.seeds import format_seeds
from erk.io.cache import cached, digest, find
from erk.method.point import norm, to_double
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.runtime.provenance import provenance
from metrics.jackknife import group_of, replicated
from scripts.paper.rows import kept_rows
from scripts.paper.tables import GROUPS
from scripts.studies.comparison_plan import BATCH, CORRECTIONS, SEEDS, Cell, data_of
from scripts.studies.data import Data, fd, identity, sliced_w1
from scripts.studies.rows import VERSION, Row

SECONDS = {"mnist": 0.9e-3, "spectra": 0.03e-3}  # of one thread for a sample's evaluation


class Cells:
    """The finished cells of a folder: those of its page, and those kept in `rows`."""

    def __init__(self, results: Path) -> None:
        self.folder, self.of_page = results / "rows", kept_rows(results)

    def __getitem__(self, cell: Cell) -> Row | None:
        """Return the numbers of a cell; None: it is not computed yet."""
        try:
            row: Row = find(cell.key, VERSION, self.folder)
        except FileNotFoundError:
            kept = self.of_page.get(digest(cell.key, VERSION))
            return None if kept is None else dict(kept)
        return row

    def pending(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that are not computed yet; of those that are equal, the first."""
        once = {digest(cell.key, VERSION): cell for cell in reversed(cells)}
        return [cell for cell in reversed(once.values()) if self[cell] is None]

    def compute(self, cells: Sequence[Cell]) -> None:
        """Compute the cells that are not there yet."""
        torch.set_num_threads(1)
        todo = self.pending(cells)
        for number, cell in enumerate(todo, 1):
            start = time.process_time()
            row = cached(cell.key, VERSION, partial(_compute, cell, self.folder), self.folder)
            click.echo(f"[{number}/{len(todo)}] {cell.name}: {row['values']['error']:.4g}, "
                       f"{time.process_time() - start:.0f} CPU s", err=True)  # fmt: skip


def cost(todo: Sequence[Cell]) -> str:
    """Describe the evaluations and the time that cells take, by data."""
    lines = []
    for name in dict.fromkeys(cell.data for cell in todo):
        cells, data = [cell for cell in todo if cell.data == name], data_of(name)
        spent = sum(cell.nfe * cell.num + _cost_of_fit(cell, data) for cell in cells)
        spent += EVALUATIONS * cells[0].num  # converged solutions, which cells share
        spent *= 1 if data.guide_model is None else 2
        hours = spent * SECONDS[name.split("-")[0]] / 3600
        lines.append(f"{name}: {len(cells)} cells are to be computed, about {spent:,} evaluations, "
                     f"{hours:.1f} CPU hours")  # fmt: skip
    return "\n".join(lines) or "all cells are computed"


def _cost_of_fit(cell: Cell, data: Data) -> int:
    if cell.mode not in CORRECTIONS:
        return 0
    problem, plan = calibration.plan_of(
        data.model, cell.nfe, cell.fixed, SEEDS[cell.mode], data.guide_model,
        CORRECTIONS[cell.mode], USUAL, EVALUATIONS, 32, data.draw,
    )  # fmt: skip
    return calibration.cost_of(problem, plan)


def _compute(cell: Cell, folder: Path) -> Row:
    """Calibrate where the mode asks for it, sample and measure."""
    data = data_of(cell.data)
    start = time.process_time()
    card = calibrated(cell) if cell.mode in CORRECTIONS else None
    settings = card.settings if card else cell.settings
    fitted = time.process_time() - start
    parts, classes = [], []
    for noise, labels in batches(cell):
        drift = settings.drift(data.model, labels, data.guide_model)
        parts.append(solve(drift, noise, settings))
        classes += [] if labels is None else labels.argmax(1).tolist()
    to_zero = bool(settings.sigmas(data.model)[-1] == 0)
    measured = measures(data, torch.cat(parts), converged(cell, to_zero, folder), classes)
    return {
        "key": digest(cell.key, VERSION), "nfe": float(drift.nfe), "fit_s": round(fitted),
        "values": {name: value for name, (value, _) in measured.items()},
        "replicates": {name: without for name, (_, without) in measured.items()},
        "settings": settings.identity(), "seeds": format_seeds(cell.seeds),
        "card": card and content_of(card._replace(report={})), "made_by": provenance(),
    }  # fmt: skip


def calibrated(cell: Cell) -> Card:
    """Return the card that `erk.calibrate` gives for the cell's mode, on other seeds."""
    data = data_of(cell.data)
    return erk.calibrate(
        data.model, cell.nfe, seeds=SEEDS[cell.mode], guide_model=data.guide_model,
        corrections=CORRECTIONS[cell.mode], evaluations=EVALUATIONS, draw=data.draw, **cell.fixed,
    )  # fmt: skip


def batches(cell: Cell) -> list[tuple[Tensor, Tensor | None]]:
    """Return the noise and labels of the cell's seeds, batch by batch."""
    draw, seeds = data_of(cell.data).draw, cell.seeds
    return [draw(seeds[i : i + BATCH]) for i in range(0, len(seeds), BATCH)]


def converged(cell: Cell, to_zero: bool, folder: Path) -> Tensor:
    """Return the converged solutions at the lowest level or at 0, which all cells share."""
    data, plain = data_of(cell.data), Settings(guidance=data_of(cell.data).guidance)
    ends = plain.sigma_max, plain.sigma_min
    what = data.networks if data.networks[0] else identity(data)
    key = ["converged", cell.data, what, plain.identity(), cell.seeds.start, EVALUATIONS]
    parts, kept = Parts(folder, key, VERSION), []
    for number, (noise, labels) in enumerate(batches(cell)):

        def both(noise: Tensor = noise, labels: Tensor | None = labels) -> Tensor:
            drift = plain.exact_drift(data.model, labels, data.guide_model)
            with torch.inference_mode():
                [(last, end)] = deque(reference_points(drift, noise, ends, EVALUATIONS), 1)
            return torch.stack([last.x, end])

        kept.append(parts.keep(f"{number} of {len(noise)}", both)[int(to_zero)])
    return torch.cat(kept)


@torch.inference_mode()
def measures(
    data: Data, x: Tensor, exact: Tensor, classes: Sequence[int]
) -> Mapping[str, tuple[float, list[float]]]:
    """Return value and jackknife replicates of error, median, quality and, of images, accuracy."""
    distance, groups = to_double(norm(x - exact).flatten()), group_of(len(x), GROUPS)
    values: dict[str, Any] = {
        "error": replicated(groups, lambda kept: distance[kept].mean().item()),
        "median": replicated(groups, lambda kept: distance[kept].median().item()),
    }
    if not classes:
        return values | {"quality": sliced_w1(data, x, GROUPS)}
    result = fd(data, x, GROUPS, classes)
    for name, column in (("quality", "fd"), ("accuracy", "accuracy")):
        values[name] = result.values[column], result.replicates[column]
    return values

"""The image of the README: error and FD over evaluations, and digits of the same seeds.

    python -m scripts.paper.cover          # results/cover.png

The curves are those of results/index.html (configs/story.yaml), from results/comparison.json. The
digits are sampled when the command runs, a few seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import erk
from erk.analysis.plots import STYLE, look, png
from erk.calibration.solver_error import converged
from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import write_file
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.models.noise import one_hot
from scripts.paper.config import ROOT
from scripts.paper.story import curves_of, read_story

SEEDS, STEPS = (4, 5), 6  # of the digits; the class is the seed
TITLES = {"error": "MNIST: distance to the converged image", "quality": "MNIST: FD"}
NAMES = ("plain Heun", "paper's weights", "auto", "DEIS", "card")  # short, in the story's order


@click.command(context_settings=CONTEXT)
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "results",
              show_default="results", help="Folder of the records and of the image.")  # fmt: skip
@clean_exit
def main(results: Path) -> None:
    """Draw the image of the README."""
    torch.set_num_threads(1)
    curves = curves_of(read_story().plot, results)
    write_file(results / "cover.png", draw([*curves.values()], digits()))


def digits() -> dict[str, np.ndarray]:
    """Sample the digits, uint8 [N, 28, 28] by the name of their column."""
    model = erk.load_model("mnist")
    noise, _ = erk.noise_and_labels(SEEDS, model)
    labels = one_hot(torch.tensor(SEEDS) % 10, model)
    plain = Settings(steps=STEPS)
    samples = {
        name: solve(settings.drift(model, labels, None), noise, settings)
        for name, settings in (("plain", plain), ("auto", replace(plain, erk="auto")))
    }
    columns = {f"{name}, {STEPS} steps": x0 for name, x0 in samples.items()}
    columns["converged"] = converged(plain, model, noise, labels)
    return {name: model.decode(x0)[:, 0].numpy() for name, x0 in columns.items()}


def draw(curves: Sequence[Sequence[Mapping[str, Any]]], columns: Mapping[str, np.ndarray]) -> bytes:
    """Draw the curves over the number of evaluations and the columns of digits as a PNG."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(10.4, 3.1), layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(1, 2, width_ratios=(6.4, 4.0))
        plots, sheet = parts
        panels = plots.subplots(1, 2)
        for axes, (key, title) in zip(panels, TITLES.items(), strict=True):
            _draw_curves(axes, curves, key)
            axes.set_title(title)
        panels[0].legend(loc="upper right")
        grid = sheet.subplots(len(SEEDS), len(columns))
        for column, (name, images) in zip(grid.T, columns.items(), strict=True):
            column[0].set_title(name)
            for panel, image in zip(column, images, strict=True):
                panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                panel.set_axis_off()
        return png(figure)


def _draw_curves(axes: Any, curves: Sequence[Sequence[Mapping[str, Any]]], key: str) -> None:
    """Draw one curve per sampler, with bands of two standard errors."""
    for index, (name, rows) in enumerate(zip(NAMES, curves, strict=True)):
        nfe, value, error = np.array([(row["nfe"], row[key], row[f"{key}_se"]) for row in rows]).T
        axes.plot(nfe, value, label=name, **look(index))
        axes.fill_between(nfe, value - 2 * error, value + 2 * error, color=look(index)["color"],
                          alpha=0.15, linewidth=0)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image (NFE)")
    counts = sorted({int(row["nfe"]) for rows in curves for row in rows})
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


if __name__ == "__main__":
    main()

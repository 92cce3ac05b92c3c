"""The plot, the images and the numbers of the README: MNIST digits from few evaluations.

    python -m scripts.studies cover          # results/cover.md, .json and .png

Samplers at equal numbers of evaluations, on the same seeds: the mean distance to the converged
solution from the same noise, FD and accuracy (scripts/paper/demo.py explains both), and the paired
change of FD from the plain sampler. Nothing is chosen on these seeds: cards use others.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import erk
from erk.analysis.plots import STYLE, look, png
from erk.calibration import calibrate as calibration
from erk.calibration.candidates import published
from erk.calibration.card import Card
from erk.calibration.solver_error import mean_with_error, reference_path
from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import write_file
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.models.noise import one_hot
from metrics import evaluation
from metrics.evaluation import Evaluation, evaluate_features, paired_differences
from metrics.extractors import load_extractor
from metrics.features import extract
from metrics.protocols import find_protocol
from metrics.references import load_reference
from scripts.studies.rows import RESULTS, Row, Table, shown

DATA = "mnist"  # preset, reference, protocol and extractor
GROUPS, BATCH = 10, 125
STEPS = (4, 6, 8, 16)  # of Heun: 7, 11, 15 and 31 evaluations
MOST = 15  # evaluations of the dearest card
PLAIN, WEIGHTS, AUTO = "plain Heun", "the paper's weights", "auto"
PUBLISHED, CARD = "best published sampler", "card"
PAPER = {4: (0.5, 0.1), 6: (0.5, 0.1), 8: (0.5, 0.1), 16: (0.75, 0.3)}
"""steps -> w_stiff and w_con of Table 2 at 8 and 16 steps, its fewest."""
DRAWN, AT = range(4, 6), 6  # seeds and steps of the images


class Plan(NamedTuple):
    """The size of the study."""

    num: int  # images per row
    card_seeds: int


@click.command(context_settings=CONTEXT)
@click.option("--steps", "counts", multiple=True, type=click.Choice([*map(str, STEPS)]),
              default=[*map(str, STEPS)], help="May be repeated.")  # fmt: skip
@click.option(
    "--num", default=1000, help="Images per row; the distance is that of the first quarter."
)
@click.option("--card-seeds", default=32, help="Seeds that a card is fitted on.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "cover",
              help="The table and the figure, without suffix.")  # fmt: skip
@clean_exit
def main(counts: Sequence[str], num: int, card_seeds: int, out: Path) -> None:
    """Measure MNIST digits from few evaluations and draw the README's figure."""
    torch.set_num_threads(1)
    plan = Plan(num, card_seeds)
    table = Table(out, shown, **plan._asdict())
    for steps in map(int, counts):
        nfe = 2 * steps - 1
        for name in (PLAIN, WEIGHTS, AUTO, *([PUBLISHED, CARD] if nfe <= MOST else [])):
            row = {"sampler": name, "NFE": nfe}
            click.echo(row, err=True)
            key = ["cover", name, steps, PAPER[steps], *plan, _model().sha256,
                   calibration.VERSION, evaluation.VERSION]  # fmt: skip
            table.add(row, key, partial(measure, name, steps, plan))
    write_file(out.with_suffix(".png"), draw(table.rows, images(DRAWN, plan)))
    click.echo(shown(table.rows))


def measure(name: str, steps: int, plan: Plan) -> Row:
    """Measure one sampler; pairs are (value, standard error)."""
    result, error = _run(name, steps, plan)
    values = {key: (result.values[key], result.errors[key]) for key in ("fd", "accuracy")}
    change = (
        paired_differences(result, _run(PLAIN, steps, plan)[0])["fd"] if name != PLAIN else None
    )
    distance = mean_with_error(error)
    return {
        "solver": _name(settings_of(name, steps, plan)),
        "error": (distance["value"], distance["error"]),
        "FD": values["fd"], "accuracy": values["accuracy"],
        "change of FD": None if change is None else (change.value, change.error),
        "beyond noise": None if change is None else "yes" if change.exceeds else "no",
    }  # fmt: skip


@cache
def _run(name: str, steps: int, plan: Plan) -> tuple[Evaluation, Tensor]:
    """Sample and evaluate; return also each sample's distance to the converged solution."""
    settings, seeds = settings_of(name, steps, plan), range(plan.num)
    x0 = _batched(partial(_solve, settings), seeds)
    is_zero = settings.sigmas(_model())[-1] == 0
    near = seeds[: len(seeds) // 4]
    error = norm(x0[: len(near)] - _converged(near)[1 if is_zero else 0]).flatten()
    result = evaluate_features(
        extract([_model().decode(x0)], {DATA: load_extractor(DATA, "cpu")}), find_protocol(DATA),
        load_reference(DATA), labels=torch.tensor(seeds) % 10, groups=GROUPS, in_seed_order=True,
    )  # fmt: skip
    return result, error


def settings_of(name: str, steps: int, plan: Plan) -> Settings:
    """Return the settings of a sampler with at most the evaluations of so many steps of Heun."""
    if name in (PUBLISHED, CARD):
        card = _card(2 * steps - 1, plan.card_seeds)
        if name == CARD:
            return card.settings
        first = card.report["contenders"][0]
        given = {key: first[key] for key in ("solver", "solver_options", "schedule", "afs")}
        return published(card.nfe, given, _model())[0]
    w_stiff, w_con = PAPER[steps]
    more: dict[str, Any] = {WEIGHTS: {"w_stiff": w_stiff, "w_con": w_con}, AUTO: {"erk": "auto"}}
    return Settings(steps=steps, **more.get(name, {}))


def _name(settings: Settings) -> str:
    order = settings.solver_options.get("order", "")
    return f"{settings.solver}{order and f' {order}'}{' + AFS' if settings.afs else ''}"


@cache
def _card(nfe: int, seeds: int) -> Card:
    return erk.calibrate(_model(), nfe, seeds=seeds)


def _solve(settings: Settings, noise: Tensor, labels: Tensor) -> Tensor:
    return solve(settings.drift(_model(), labels, None), noise, settings)


@cache
def _model() -> erk.Model:
    return erk.load_model(DATA)


@cache
def _converged(seeds: range) -> Tensor:
    """Compute the converged solutions at sigma_min and at 0, [2, N, ...]."""
    settings = Settings()
    ends = torch.tensor([settings.sigma_max, settings.sigma_min, 0.0])

    def path(noise: Tensor, labels: Tensor) -> Tensor:
        drift = settings.drift(_model(), labels, None)
        return reference_path(drift, noise, ends)[1:].transpose(0, 1)

    return _batched(path, seeds).transpose(0, 1)


def _batched(sample: Callable[[Tensor, Tensor], Tensor], seeds: range) -> Tensor:
    """Sample seeds with the class seed mod 10."""
    parts = []
    for start in range(0, len(seeds), BATCH):
        batch = seeds[start : start + BATCH]
        noise, _ = erk.noise_and_labels(batch, _model())
        parts.append(sample(noise, one_hot(torch.tensor(batch) % 10, _model())))
    return torch.cat(parts)


def images(seeds: range, plan: Plan) -> dict[str, np.ndarray]:
    """Sample the images of the figure, uint8 [N, 28, 28] by name."""
    samples = {
        f"{name}, {AT} steps": _batched(partial(_solve, settings_of(name, AT, plan)), seeds)
        for name in (PLAIN, AUTO)
    }
    samples["converged"] = _converged(seeds)[1]
    return {name: _model().decode(x0)[:, 0].numpy() for name, x0 in samples.items()}


def draw(rows: Sequence[Row], drawn: Mapping[str, np.ndarray]) -> bytes:
    """Draw error and FD over evaluations, and images of the same seeds, as a PNG."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(9.6, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        plots, sheet = figure.subfigures(1, 2, width_ratios=(5.6, 4.0))
        for axes, key, title in zip(
            plots.subplots(1, 2), ("error", "FD"),
            ("distance to the converged image", "FD on MNIST"), strict=True,
        ):  # fmt: skip
            _curves(axes, rows, key)
            axes.set_title(title)
        axes.legend()
        grid = sheet.subplots(len(DRAWN), len(drawn))
        for column, (name, shown_images) in enumerate(drawn.items()):
            grid[0, column].set_title(name)
            for panel, image in zip(grid[:, column], shown_images, strict=True):
                panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                panel.set_axis_off()
        return png(figure)


def _curves(axes: Any, rows: Sequence[Row], key: str) -> None:
    """Draw one curve per sampler, with bands of two standard errors."""
    for index, name in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
        points = sorted((row["NFE"], *row[key]) for row in rows if row["sampler"] == name)
        nfe, value, error = np.array(points).T
        axes.plot(nfe, value, label=name, **look(index))
        axes.fill_between(nfe, value - 2 * error, value + 2 * error, color=look(index)["color"],
                          alpha=0.15, linewidth=0)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image (NFE)")
    counts = sorted({row["NFE"] for row in rows})
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.minorticks_off()


if __name__ == "__main__":
    main()

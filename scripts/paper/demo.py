"""The demo: MNIST digits from few evaluations, plain, with the paper's weights and with auto.

    bash scripts/demo.sh          # set-up, then this

Every row has the same seeds. Writes demo.md, demo.json and demo.png to out/demo and prints the
table; the committed demo is written by python -m scripts.paper.demo --results results. Standard
errors leave out groups of seeds; changes of FD are paired, seed by seed.
"""

import io
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from erk import load_model
from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.images import sheet
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.generation.seeds import parse_seeds
from erk.method.settings import Settings
from erk.models.presets import find_preset
from erk.runtime.provenance import provenance
from metrics.evaluation import Evaluation, evaluate_features, fd_floor, paired_differences
from metrics.extractors import load_extractor
from metrics.features import extract
from metrics.protocols import find_protocol
from metrics.references import load_reference
from metrics.report import number, to_text
from scripts.paper.config import ROOT
from scripts.paper.page import Page, flatten, table_of, write_page
from scripts.paper.tables import Change, verdict

DATA = "mnist"  # preset, reference, protocol and extractor
WEIGHTS = {"w_stiff": 0.5, "w_con": 0.1}  # the paper's at its fewest steps, 8
SAMPLERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain, 6 steps", {"steps": 6}),
    ("ERK-Guid, the paper's weights, 6 steps", {"steps": 6, **WEIGHTS}),
    ("auto, 6 steps", {"steps": 6, "erk": "auto"}),
    ("plain, 16 steps", {"steps": 16}),
)
BATCH = 125
CHANGE = "change of FD"
COLUMNS = 12  # images per row of the sheet


class Run(NamedTuple):
    """One row of the table."""

    name: str
    steps: int
    nfe: int
    images: torch.Tensor  # uint8 [N, 1, 28, 28]
    result: Evaluation


def sample_row(options: dict[str, Any], seeds: list[int]) -> tuple[Any, list[int], int]:
    """Sample one row: images [N, 1, 28, 28], their classes and the counted NFE."""
    settings = Settings(solver="heun", schedule="edm", **options)
    model = load_model(find_preset(DATA).net)
    job = Job(model, settings, None, seeds, labels="balanced", batch=min(BATCH, len(seeds)))
    batches = list(generate(job))
    classes = [int(c) for batch in batches if batch.classes is not None for c in batch.classes]
    return torch.cat([batch.wait() for batch in batches]).numpy(), classes, int(batches[0].nfe)


def sample_all(seeds: list[int], groups: int) -> list[Run]:
    """Sample and evaluate every row on the same seeds.

    Rows are sampled side by side, one thread each: images then do not depend on the machine's
    number of cores, and networks this small gain nothing from more threads.
    """
    extractors = {DATA: load_extractor(DATA, "cpu")}
    reference, protocol = load_reference(DATA), find_protocol(DATA)
    workers = min(os.cpu_count() or 1, len(SAMPLERS))
    runs = []
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        dearest_first = sorted(SAMPLERS, key=lambda sampler: -sampler[1]["steps"])
        futures = {name: pool.submit(sample_row, options, seeds) for name, options in dearest_first}
        for name, options in SAMPLERS:
            pixels, classes, nfe = futures[name].result()
            images = torch.from_numpy(pixels)
            result = evaluate_features(
                extract([images], extractors), protocol, reference, labels=classes, groups=groups,
                in_seed_order=True,
            )  # fmt: skip
            runs.append(Run(name, options["steps"], nfe, images, result))
            done = f"[{len(runs)}/{len(SAMPLERS)}]"
            click.echo(f"{done} {name}: FD {result.values['fd']:.2f}", err=True)
    return runs


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the table's rows; the last columns are the paired change of FD from the first row."""
    plain, rows = runs[0].result, []
    for run in runs:
        values = {
            name: (run.result.values[name], error) for name, error in run.result.errors.items()
        }
        row: dict[str, Any] = {
            "sampler": run.name,
            "NFE": run.nfe,
            "FD": values["fd"],
            "precision": values["precision"],
            "recall": values["recall"],
            "IS": values["is"],
            "accuracy": values["accuracy"],
            CHANGE: None,
            "beyond noise": None,
        }
        change = None if run is runs[0] else paired_differences(run.result, plain).get("fd")
        if change is not None:
            row[CHANGE] = (change.value, change.error)
            row["beyond noise"] = "yes" if change.exceeds else "no"
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Say in one sentence what the paired differences say."""
    changes = [
        Change(row["sampler"], row[CHANGE][0], row["beyond noise"] == "yes")
        for row in rows
        if row[CHANGE] is not None
    ]
    sentence = verdict(f"FD against {rows[0]['sampler']}", changes, ("lower", "higher"))
    return f"{sentence} (The same seeds in every row, 95 % interval.)"


def draw(runs: list[Run]) -> bytes:
    """Draw a PNG: a row of digits per run at twice their size, the same seeds in each column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = np.concatenate([run.images[:COLUMNS].numpy() for run in runs])
    page = sheet(shown, columns=min(COLUMNS, len(runs[0].images)), scale=2)[0]
    figure = plt.figure(figsize=((page.shape[1] + 260) / 100, (page.shape[0] + 20) / 100), dpi=100)
    panel = figure.add_axes((
        250 / (page.shape[1] + 260), 10 / (page.shape[0] + 20),
        page.shape[1] / (page.shape[1] + 260), page.shape[0] / (page.shape[0] + 20),
    ))  # fmt: skip
    panel.imshow(page, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    height = page.shape[0] / len(runs)
    names = [
        f"{run.name.replace(', the', ', the' + chr(10))}\nNFE {run.nfe}, "
        f"FD {run.result.values['fd']:.2f}"
        for run in runs
    ]
    panel.set_yticks([(i + 0.5) * height for i in range(len(runs))], names, fontsize=9)
    panel.set_xticks([])
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


@click.command(context_settings=CONTEXT)
@click.option("--seeds", default="0-999", help="Seeds of each row's images.")
@click.option("--groups", default=10, help="Groups of seeds of the error bars.")
@click.option("--results", default=str(ROOT / "out" / "demo"), show_default="out/demo",
              help="Folder of the results.")  # fmt: skip
@clean_exit
def main(seeds: str, groups: int, results: str) -> None:
    """Sample MNIST digits four ways, measure, and write demo.md, .json and .png."""
    chosen = parse_seeds(seeds)
    runs = sample_all(chosen, groups)
    rows = rows_of(runs)
    reference = load_reference(DATA)
    floor = fd_floor(reference.statistics[DATA], len(chosen), reference.labels)
    notes = [
        f"{len(chosen)} images per row (seeds {seeds}, balanced labels, preset {DATA}, Heun, EDM "
        f"schedule). The paper's weights: w_stiff {WEIGHTS['w_stiff']}, w_con {WEIGHTS['w_con']}, "
        "of its Table 2 at 8 steps; auto has no weights. Nothing was chosen on these seeds.",
        "FD is the Fréchet distance on 128 features of a classifier of MNIST, accuracy the share "
        "that it takes for the class asked for.",
        f"FD floor {number((floor.value, floor.error))}: the FD of as many real digits. Standard "
        f"errors: each of {groups} groups of seeds left out in turn (jackknife); the last but "
        f"one column is the change of FD from {runs[0].name}, on the same seeds.",
        summary(rows),
    ]
    page = Page(
        name="demo",
        title="MNIST digits from few evaluations",
        kind="demo",
        scale=None,
        tables=[table_of("", rows)],
        rows=[flatten(row) for row in rows],
        notes=notes,
        made_by=[provenance("cpu")],
        files=["demo.png"],
    )
    folder = Path(results)
    write_page(folder, page, {"demo.png": draw(runs)}, ends=("json", "md"))
    click.echo(to_text(rows) + "\n" + "\n".join(notes))
    click.echo(f"wrote {folder / 'demo.md'}, demo.json and demo.png")


if __name__ == "__main__":
    main()

"""The demo: sample digits with and without ERK-Guid from the same seeds, evaluate, show.

    bash scripts/demo.sh          # set-up, then this

Writes demo.md, demo.json and demo.png to out/demo and prints the table; the committed demo is
written by python -m scripts.paper.demo --results results. Standard
errors leave out groups of seeds; differences are paired, the same seeds with and without ERK-Guid.
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
from scripts.paper.plan import nfe_text
from scripts.paper.tables import Change, verdict

STEPS = (6, 8, 16)
ERK: dict[str, Any] = {"w_stiff": 0.5, "w_con": 0.3}
GUIDES = {"none": "digits", "Autoguidance": "digits-autog"}
BATCH = 250
CHANGE = "change of FD"
SHOWN = 12  # images per row of the sheet


class Run(NamedTuple):
    """One row of the table."""

    guide: str
    steps: int
    erk: bool
    nfe: str
    images: torch.Tensor  # uint8 [N, 1, 8, 8]
    result: Evaluation


def sample_row(guide: str, steps: int, erk: bool, seeds: list[int]) -> tuple[Any, list[int], str]:
    """Sample one row: images [N, 1, 8, 8], their classes and the counted NFE."""
    preset = find_preset(GUIDES[guide])
    job = Job(
        load_model(preset.net),
        Settings(steps=steps, guidance=preset.guidance, **(ERK if erk else {})),
        load_model(preset.gnet) if preset.gnet else None,
        seeds,
        labels="balanced",
        batch=min(BATCH, len(seeds)),
    )
    batches = list(generate(job))
    classes = [int(c) for batch in batches if batch.classes is not None for c in batch.classes]
    nfe = nfe_text(batches[0].nfe, batches[0].guide_nfe)
    return torch.cat([batch.wait() for batch in batches]).numpy(), classes, nfe


def sample_all(seeds: list[int], groups: int) -> list[Run]:
    """Sample and evaluate every combination of guide, steps and ERK-Guid on the same seeds.

    Rows are sampled side by side, one thread each: images then do not depend on the machine's
    number of cores, and networks this small gain nothing from more threads.
    """
    extractors = {"digits": load_extractor("digits", "cpu")}
    reference, protocol = load_reference("digits"), find_protocol("digits")
    rows = [(guide, steps, erk) for guide in GUIDES for steps in STEPS for erk in (False, True)]
    workers = min(os.cpu_count() or 1, len(rows))
    runs = []
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(sample_row, *row, seeds) for row in rows]
        for row, future in zip(rows, futures, strict=True):
            pixels, classes, nfe = future.result()
            images = torch.from_numpy(pixels)
            features = extract([images], extractors)
            result = evaluate_features(
                features, protocol, reference, labels=classes, groups=groups, in_seed_order=True
            )
            runs.append(Run(*row, nfe, images, result))
            guide, steps, erk = row
            name = f"{guide}, {steps} steps, ERK-Guid {'on' if erk else 'off'}"
            click.echo(f"[{len(runs)}/{len(rows)}] {name}: FD {result.values['fd']:.2f}", err=True)
    return runs


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the table's rows; the last columns are the paired change of FD with ERK-Guid."""
    rows = []
    for run in runs:
        values = {
            name: (run.result.values[name], error) for name, error in run.result.errors.items()
        }
        row: dict[str, Any] = {
            "guide": run.guide,
            "steps": run.steps,
            "ERK-Guid": "on" if run.erk else "off",
            "NFE": run.nfe,
            "FD": values["fd"],
            "precision": values["precision"],
            "recall": values["recall"],
            "IS": values["is"],
            "recognised": values["accuracy"],
            CHANGE: None,
            "beyond noise": None,
        }
        if run.erk:
            plain = next(r for r in runs if r[:2] == run[:2] and not r.erk)
            change = paired_differences(run.result, plain.result).get("fd")
            if change is not None:
                row[CHANGE] = (change.value, change.error)
                row["beyond noise"] = "yes" if change.exceeds else "no"
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Count what the paired differences say."""
    changes = []
    for row in rows:
        if row[CHANGE] is not None:
            guide = "" if row["guide"] == "none" else f" with {row['guide']}"
            name = f"{row['steps']} steps{guide}"
            changes.append(Change(name, row[CHANGE][0], row["beyond noise"] == "yes"))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    moves = []
    for name in ("precision", "recall"):
        up = sum(on[name][0] > off[name][0] for off, on in pairs)
        moves.append(f"{name} rises in {up} of {len(pairs)} pairs")
    sentence = verdict("FD with ERK-Guid", changes, ("lower", "higher"))
    return (
        f"{sentence} (The same seeds on and off, 95 % interval.) Of the single rows, "
        f"{' and '.join(moves)}, on against off."
    )


def draw(runs: list[Run]) -> bytes:
    """Draw a PNG: a panel per guide, a row of digits per run, the same seeds in each column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(GUIDES), figsize=(12, 2.9), layout="constrained")
    for panel, guide in zip(panels, GUIDES, strict=True):
        shown = [run for run in runs if run.guide == guide]
        images = np.concatenate([run.images[:SHOWN].numpy() for run in shown])
        page = sheet(images, columns=len(shown[0].images[:SHOWN]), scale=4)[0]
        panel.imshow(page, cmap="gray", vmin=0, vmax=255)
        height = page.shape[0] / len(shown)
        names = [
            f"{run.steps} steps, {'ERK-Guid' if run.erk else 'plain'}\n"
            f"FD {run.result.values['fd']:.2f}"
            for run in shown
        ]
        panel.set_yticks([(i + 0.5) * height for i in range(len(shown))], names, fontsize=8)
        panel.set_xticks([])
        panel.set_title("no model guidance" if guide == "none" else guide, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


@click.command(context_settings=CONTEXT)
@click.option("--seeds", default="0-1499", help="Seeds of each row's images.")
@click.option("--groups", default=10, help="Groups of seeds of the error bars.")
@click.option("--results", default=str(ROOT / "out" / "demo"), show_default="out/demo",
              help="Folder of the results.")  # fmt: skip
@clean_exit
def main(seeds: str, groups: int, results: str) -> None:
    """Sample digits with and without ERK-Guid, measure, and write demo.md, .json, .png."""
    chosen = parse_seeds(seeds)
    runs = sample_all(chosen, groups)
    rows = rows_of(runs)
    reference = load_reference("digits")
    floor = fd_floor(reference.statistics["digits"], len(chosen), reference.labels)
    notes = [
        f"{len(chosen)} images per row (seeds {seeds}, balanced labels, preset digits, Heun, "
        f"EDM schedule); ERK-Guid: w_stiff {ERK['w_stiff']}, w_con {ERK['w_con']}.",
        "FD is the Fréchet distance on the 64 features of the digits classifier, recognised the "
        "share that it takes for the class asked for; w_stiff and w_con were fixed beforehand, not "
        "chosen on these seeds.",
        f"FD floor {number((floor.value, floor.error))}: the FD of as many real digits. Standard "
        f"errors: each of {groups} groups of seeds left out in turn (jackknife); the last but "
        "one column is the change of FD with ERK-Guid on the same seeds.",
        summary(rows),
    ]
    page = Page(
        name="demo",
        title="Digits with and without ERK-Guid",
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

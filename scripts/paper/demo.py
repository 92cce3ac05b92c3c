"""The demo: digits with and without ERK-Guid, from the same seeds, sampled, measured, shown.

    bash scripts/demo.sh          # set-up, then this

Writes results/demo.md, results/demo.json and results/demo.png and prints the table. Standard
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
from metrics.table import to_json, to_markdown, to_text, write

ROOT = Path(__file__).resolve().parents[2]
STEPS = (6, 8, 16)
ERK = {"w_stiff": 0.5, "w_con": 0.3}
GUIDES = {"none": "digits", "Autoguidance": "digits-autog"}
BATCH = 250
CHANGE = "change of FD"
SHOWN = 12  # pictures per row of the sheet


class Run(NamedTuple):
    """One row of the table."""

    guide: str
    steps: int
    erk: bool
    nfe: str
    images: torch.Tensor  # uint8 [N, 1, 8, 8]
    result: Evaluation


def sample_row(guide: str, steps: int, erk: bool, seeds: list[int]) -> tuple[Any, list[int], str]:
    """Pictures [N, 1, 8, 8], their classes and the counted NFE of one row."""
    preset = find_preset(GUIDES[guide])
    made = list(
        generate(
            Job(
                load_model(preset.net),
                Settings(steps=steps, guidance=preset.guidance, **(ERK if erk else {})),
                load_model(preset.gnet) if preset.gnet else None,
                seeds,
                labels="balanced",
                batch=min(BATCH, len(seeds)),
            )
        )
    )
    classes = [int(c) for batch in made for c in ([] if batch.classes is None else batch.classes)]
    nfe = f"{made[0].nfe:g}" + (f" + {made[0].guide_nfe:g}" if preset.gnet else "")
    return torch.cat([batch.wait() for batch in made]).numpy(), classes, nfe


def sample_all(seeds: list[int], groups: int) -> list[Run]:
    """Every combination of guide, steps and ERK-Guid, from the same seeds and labels.

    Rows are sampled side by side, one thread each: pictures then do not depend on the machine's
    number of cores, and nets this small gain nothing from more threads.
    """
    judges = {"digits": load_extractor("digits", "cpu")}
    reference, protocol = load_reference("digits", judges), find_protocol("digits")
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
            found = extract([images], judges)
            result = evaluate_features(found, protocol, reference, labels=classes, groups=groups)
            runs.append(Run(*row, nfe, images, result))
            guide, steps, erk = row
            state = "on" if erk else "off"
            told = f"{guide}, {steps} steps, ERK-Guid {state}: FD {result.values['fd']:.2f}"
            click.echo(f"[{len(runs)}/{len(rows)}] {told}", err=True)
    return runs


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """Table rows; the last column is the paired change that ERK-Guid makes to FD."""
    rows = []
    for run in runs:
        found = {
            name: (run.result.values[name], error) for name, error in run.result.errors.items()
        }
        row: dict[str, Any] = {
            "guide": run.guide,
            "steps": run.steps,
            "ERK-Guid": "on" if run.erk else "off",
            "NFE": run.nfe,
            "FD": found["fd"],
            "precision": found["precision"],
            "recall": found["recall"],
            "IS": found["is"],
            "recognised": found["accuracy"],
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


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the paired differences say, counted, not hoped for."""
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "not measurably changed": []}
    for row in rows:
        if row[CHANGE] is not None:
            sure = row["beyond noise"] == "yes"
            kind = (
                ("lower" if row[CHANGE][0] < 0 else "higher") if sure else "not measurably changed"
            )
            guide = "" if row["guide"] == "none" else f" with {row['guide']}"
            groups[kind].append(f"{row['steps']} steps{guide}")
    told = "; ".join(f"{kind} at {', '.join(names)}" for kind, names in groups.items() if names)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    moves = []
    for name in ("precision", "recall"):
        up = sum(on[name][0] > off[name][0] for off, on in pairs)
        moves.append(f"{name} rises in {up} of {len(pairs)} pairs")
    return (
        f"With ERK-Guid FD is {told} (paired differences, the same seeds on and off, "
        f"95 % interval). Of the single rows, {' and '.join(moves)}, on against off."
    )


def picture(runs: list[Run]) -> bytes:
    """A PNG: one panel per guide, one row of digits per run, the same seeds below each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(GUIDES), figsize=(12, 2.9), layout="constrained")
    for panel, guide in zip(panels, GUIDES, strict=True):
        own = [run for run in runs if run.guide == guide]
        images = np.concatenate([run.images[:SHOWN].numpy() for run in own])
        page = sheet(images, columns=len(own[0].images[:SHOWN]), scale=4)[0]
        panel.imshow(page, cmap="gray", vmin=0, vmax=255)
        height = page.shape[0] / len(own)
        names = [
            f"{run.steps} steps, {'ERK-Guid' if run.erk else 'plain'}\n"
            f"FD {run.result.values['fd']:.2f}"
            for run in own
        ]
        panel.set_yticks([(i + 0.5) * height for i in range(len(own))], names, fontsize=8)
        panel.set_xticks([])
        panel.set_title("no model guidance" if guide == "none" else guide, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


@click.command(context_settings=CONTEXT)
@click.option("--seeds", default="0-1499", help="Pictures per row of the table.")
@click.option("--groups", default=10, help="Groups of seeds of the error bars.")
@click.option("--results", default=str(ROOT / "results"), help="Where the files go.")
@clean_exit
def main(seeds: str, groups: int, results: str) -> None:
    """Sample digits with and without ERK-Guid, measure, and write results/demo.*."""
    chosen = parse_seeds(seeds)
    runs = sample_all(chosen, groups)
    rows = rows_of(runs)
    reference = load_reference("digits")
    floor = fd_floor(reference.statistics["digits"], len(chosen), reference.labels)
    notes = [
        f"{len(chosen)} pictures per row (seeds {seeds}, balanced labels, preset digits, Heun, "
        f"EDM schedule); ERK-Guid: w_stiff {ERK['w_stiff']}, w_con {ERK['w_con']}.",
        "FD is the Fréchet distance on the 64 features of the digits classifier, recognised the "
        "share that it takes for the class asked for; w_stiff and w_con were fixed beforehand, not "
        "chosen on these seeds.",
        f"FD floor {floor.value:.2f} ± {floor.error:.2f}: what as many real digits get. Standard "
        f"errors by leaving out each of {groups} groups of seeds in turn (jackknife); the last but "
        "one column is the change that ERK-Guid makes, from the same seeds.",
        verdict(rows),
    ]
    made_by = provenance("cpu")
    folder = Path(results)
    write(
        folder / "demo.md",
        "# Digits with and without ERK-Guid\n\n"
        + to_markdown(rows)
        + "\n" + "\n\n".join(notes) + "\n\n![digits](demo.png)\n\n"
        + f"Made by `{made_by['command']}` at commit {made_by['commit']} on {made_by['device']} "
        + f"with {', '.join(f'{k} {v}' for k, v in made_by['versions'].items())}.\n",
    )  # fmt: skip
    write(folder / "demo.json", to_json([row | {"made_by": made_by} for row in rows]))
    write(folder / "demo.png", picture(runs))
    click.echo(to_text(rows) + "\n" + "\n".join(notes))
    click.echo(f"wrote {folder / 'demo.md'}, demo.json and demo.png")


if __name__ == "__main__":
    main()

"""The result rows of `erk evaluate`: their content, their files and the printed tables."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from erk.generation.seeds import format_seeds
from erk.io.atomic import save_file
from erk.runtime.provenance import provenance
from metrics.evaluation import Evaluation, paired_differences
from metrics.evaluator import Evaluator
from metrics.features import Features
from metrics.images import ImageSource, seeds_of
from metrics.report import heading, paired_text, text, to_csv, to_json
from metrics.store import trim

DEFAULTS = {
    "real": None, "protocol": None, "metrics": None, "num": None, "seed": 0, "groups": 10,
    "weights": (), "extractor_precision": "fp32",
}  # fmt: skip
"""Options that change the numbers; a value other than these enters the name of the file."""
NOT_IN_CSV = ("replicates", "run", "minus", "notes")


def report(
    evaluator: Evaluator,
    sources: Sequence[ImageSource],
    results: Sequence[tuple[Features, Evaluation]],
    options: dict[str, Any],
) -> None:
    """Write the result rows of one run, or of a pair, and print their tables."""
    if len({tuple(features.index.tolist()) for features, _ in results}) > 1:
        raise ValueError(
            "the runs have different unreadable images and cannot be paired; regenerate the "
            "unreadable ones"
        )
    evaluations = [evaluation for _, evaluation in results]
    rows = _rows(evaluator, sources, evaluations)
    notes = [_notes(row) for row in rows]
    if len(rows) == 1:
        click.echo(text(rows[0]["images"], evaluations[0], notes[0]))
    else:
        _print_pair(rows, evaluations, notes)
    _write(rows, options)
    store = evaluator.options.folder
    freed = trim(store, int(options["cache_limit"] * 2**30))
    if freed:
        click.echo(f"{freed / 2**30:.1f} GiB of old features removed from {store}")


def _rows(
    evaluator: Evaluator, sources: Sequence[ImageSource], evaluations: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    origin = provenance(evaluator.options.device)
    rows = []
    for source, evaluation in zip(sources, evaluations, strict=True):
        about = {
            "images": str(source.path),
            "seeds": _seeds(source),
            "skipped": len(source.names) - evaluation.n,
        }
        rows.append(about | evaluation.to_dict() | origin | {"run": source.run})
    return rows


def _notes(row: dict[str, Any]) -> list[str]:
    """Return what a reader must know of the set of images."""
    run, notes = row["run"], []
    if run.get("complete") is False:
        notes.append(f"the run is not complete: it should have {run.get('images')} images")
    if row["skipped"]:
        notes.append(f"{row['skipped']} images could not be read and were left out")
    return notes


def _print_pair(
    rows: list[dict[str, Any]],
    evaluations: Sequence[Evaluation],
    notes: Sequence[Sequence[str]],
) -> None:
    """Print both runs and their differences; add the differences to the first row."""
    differences = paired_differences(evaluations[0], evaluations[1])
    names = [row["images"] for row in rows]
    rows[0]["minus"] = {"images": names[1]} | {
        name: difference._asdict() for name, difference in differences.items()
    }
    for name, evaluation, more in zip(names, evaluations, notes, strict=True):
        click.echo(heading(name, evaluation, more) + "\n")
    click.echo(paired_text(names, evaluations, differences))


def _write(rows: list[dict[str, Any]], options: dict[str, Any]) -> None:
    for row in rows:
        path = Path("results") / f"{_name(row['images'])}-{_reference_name(options)}.json"
        if options["json_path"] and row is rows[0]:
            path = Path(options["json_path"])
        replaced = " (replaces an earlier one)" if path.exists() else ""
        click.echo(f"row written to {save_file(path, to_json(row))}{replaced}")
    if options["csv_path"]:
        table = [{k: v for k, v in row.items() if k not in NOT_IN_CSV} for row in rows]
        click.echo(f"rows written to {save_file(options['csv_path'], to_csv(table))}")


def _name(path: str) -> str:
    """Return the part of a file name that stands for a path: out/images.zip -> out-images-zip."""
    full = Path(path).resolve()
    inside = full.is_relative_to(Path.cwd()) and full != Path.cwd()
    parts = full.relative_to(Path.cwd()).parts if inside else full.parts[-2:]
    joined = "-".join(part for part in parts if part != full.anchor)
    return re.sub(r"\.(zip|npz|pkl)$", r"-\1", joined)


def _reference_name(options: dict[str, Any]) -> str:
    """Return the reference's name, and a hash of the options that change the numbers, if any."""
    changed = {name: options[name] for name, usual in DEFAULTS.items() if options[name] != usual}
    code = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    return _name(options["ref"] or options["real"]) + (f"-{code}" if changed else "")


def _seeds(source: ImageSource) -> str | None:
    """Return the seeds in the images' names, such as 0-99,120; None if they have none."""
    seeds = seeds_of(source)
    return None if seeds is None else format_seeds(seeds)

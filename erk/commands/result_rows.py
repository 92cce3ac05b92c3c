"""The result rows of `erk evaluate`: their content, their files and the printed tables."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from erk.generation.seeds import format_seeds
from erk.runtime.provenance import provenance
from metrics.images import ImageSource, seeds_of
from metrics.judge import Judge, Verdict
from metrics.report import differences, notes, paired_text, text, to_row
from metrics.store import trim
from metrics.table import to_csv, to_json, write

DEFAULTS = {
    "real": None, "protocol": None, "metrics": None, "num": None, "seed": 0, "groups": 10,
    "weights": (), "extractor_precision": "fp32",
}  # fmt: skip
"""Options that change the numbers; a value other than these enters the name of the file."""
NOT_IN_CSV = ("replicates", "run", "minus")


def report(
    evaluator: Judge,
    sources: Sequence[ImageSource],
    results: Sequence[Verdict],
    options: dict[str, Any],
) -> None:
    """Write the result rows of one run, or of a pair, and print their tables."""
    if len({tuple(result.found.kept.tolist()) for result in results}) > 1:
        raise ValueError(
            "the runs have different unreadable images and cannot be paired; regenerate the "
            "unreadable ones"
        )
    rows = _rows(evaluator, sources, results)
    if len(rows) == 1:
        click.echo(text(evaluator, rows[0], results[0].result))
    else:
        _print_pair(evaluator, rows, results)
    _write(rows, options)
    freed = trim(evaluator.how.folder, int(options["cache_limit"] * 2**30))
    if freed:
        click.echo(f"{freed / 2**30:.1f} GiB of old features removed from {evaluator.how.folder}")


def _rows(
    evaluator: Judge, sources: Sequence[ImageSource], results: Sequence[Verdict]
) -> list[dict[str, Any]]:
    origin = provenance(evaluator.device)
    rows = []
    for source, result in zip(sources, results, strict=True):
        about = {
            "images": str(source.path),
            "seeds": _seeds(source),
            "skipped": len(source.names) - result.result.n,
        }
        rows.append(about | to_row(evaluator, result) | origin | {"run": source.run})
    return rows


def _print_pair(evaluator: Judge, rows: list[dict[str, Any]], results: Sequence[Verdict]) -> None:
    """Print both runs and their differences; add the differences to the first row."""
    pairs = differences(results[0].result, results[1].result)
    rows[0]["minus"] = {"images": rows[1]["images"]} | {
        name: difference._asdict() for name, difference in pairs.items()
    }
    for row, result in zip(rows, results, strict=True):
        click.echo(notes(evaluator, row, result.result) + "\n")
    click.echo(paired_text(rows, pairs))


def _write(rows: list[dict[str, Any]], options: dict[str, Any]) -> None:
    for row in rows:
        path = Path("results") / f"{_name(row['images'])}-{_reference_name(options)}.json"
        if options["json_path"] and row is rows[0]:
            path = Path(options["json_path"])
        replaced = " (replaces an earlier one)" if path.exists() else ""
        click.echo(f"row written to {write(path, to_json(row))}{replaced}")
    if options["csv_path"]:
        flat = [
            {
                name: json.dumps(value) if isinstance(value, dict) else value
                for name, value in row.items()
                if name not in NOT_IN_CSV
            }
            for row in rows
        ]
        click.echo(f"rows written to {write(options['csv_path'], to_csv(flat))}")


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

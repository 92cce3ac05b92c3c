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
from erk.io.text import printable
from erk.runtime.provenance import provenance
from metrics.evaluation import Evaluation, paired_differences
from metrics.evaluator import Evaluator
from metrics.features import Features
from metrics.images import ImageSource
from metrics.references import reference_names
from metrics.report import heading, notes_text, paired_text, text, to_csv, to_json
from metrics.selection import seeds_of
from metrics.store import trim

DEFAULTS = {
    "real": None, "protocol": None, "metrics": None, "num": None, "seed": 0, "groups": 10,
    "weights": (), "extractor_precision": "fp32",
}  # fmt: skip
"""Options that change the numbers; a value other than these enters the name of the file."""
LONGEST_NAME = 200  # bytes of a row's file name, of the 255 that file systems allow
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
    shown = _shown(rows, evaluations)
    written = _write(rows, options)  # before anything is shown: an output may be closed or full
    click.echo("\n".join([shown, *written]))
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
        row = about | evaluation.to_dict() | origin | {"run": source.run}
        rows.append(row | {"notes": [*row["notes"], *_notes(row)]})
    return rows


def _notes(row: dict[str, Any]) -> list[str]:
    """Return what a reader must know of the set of images."""
    run, notes = row["run"], []
    if run.get("complete") is False:
        notes.append(f"the run is not complete: it should have {run.get('images')} images")
    if row["skipped"]:
        notes.append(f"{row['skipped']} images could not be read and were left out")
    return notes


def _shown(rows: list[dict[str, Any]], evaluations: Sequence[Evaluation]) -> str:
    """Format one run, or a pair and its differences, which are added to the first row."""
    notes = [_notes(row) for row in rows]
    if len(rows) == 1:
        return text(rows[0]["images"], evaluations[0], notes[0])
    differences = paired_differences(evaluations[0], evaluations[1])
    names = [row["images"] for row in rows]
    rows[0]["minus"] = {"images": names[1]} | {
        name: difference._asdict() for name, difference in differences.items()
    }
    heads = [heading(name, one) for name, one in zip(names, evaluations, strict=True)]
    about = [
        f"\n{printable(name)}:{notes_text(one, more)}"
        for name, one, more in zip(names, evaluations, notes, strict=True)
    ]
    return "\n".join([*heads, "", paired_text(names, evaluations, differences), *about])


def _write(rows: list[dict[str, Any]], options: dict[str, Any]) -> list[str]:
    """Write all files; return a line on each."""
    lines = []
    for row, path in zip(rows, row_paths([row["images"] for row in rows], options), strict=True):
        replaced = " (replaces an earlier one)" if path.exists() else ""
        lines.append(f"row written to {save_file(path, to_json(row))}{replaced}")
    if options["csv_path"]:
        table = [{k: v for k, v in row.items() if k not in NOT_IN_CSV} for row in rows]
        lines.append(f"rows written to {save_file(options['csv_path'], to_csv(table))}")
    return lines


def row_paths(images: Sequence[str], options: dict[str, Any]) -> list[Path]:
    """Return the file of the row of each set of images."""
    paths = [Path("results") / _file_name(path, options) for path in images]
    return [Path(options["json_path"]), *paths[1:]] if options["json_path"] else paths


def _file_name(images: str, options: dict[str, Any]) -> str:
    """Return IMAGES-REF.json; with a hash where that stands for other paths or options as well."""
    reference = options["ref"] or options["real"]
    changed = {name: options[name] for name, usual in DEFAULTS.items() if options[name] != usual}
    is_known = reference in reference_names()
    paths = _parts(images), (reference,) if is_known else _parts(reference)
    name = "-".join(map(_joined, paths))
    safe = re.sub(r"[^\w.-]", "-", printable(name)).encode()[:LONGEST_NAME].decode(errors="ignore")
    is_unique = _is_plain(paths[0]) and (
        is_known or (_is_plain(paths[1]) and "-" not in paths[1][0])
    )
    if safe != name or not is_unique:
        changed["paths"] = paths
    code = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    return f"{safe}{f'-{code}' if changed else ''}.json"


def _joined(parts: Sequence[str]) -> str:
    """Return the text for a path in a file name: out/images.zip -> out-images-zip."""
    few = parts[-2:] if Path(parts[0]).is_absolute() else parts
    joined = "-".join(part for part in few if not Path(part).is_absolute())
    return re.sub(r"\.(zip|npz|pkl)$", r"-\1", joined)


def _is_plain(parts: Sequence[str]) -> bool:
    """Return whether no other path has the same text."""
    return len(parts) == 1 and not parts[0].endswith(("-zip", "-npz", "-pkl"))


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path, below the current folder if it is there, else from the root."""
    full = Path(path).resolve()
    inside = full.is_relative_to(Path.cwd()) and full != Path.cwd()
    return full.relative_to(Path.cwd()).parts if inside else full.parts


def _seeds(source: ImageSource) -> str | None:
    """Return the seeds in the images' names, such as 0-99,120; None if they have none."""
    seeds = seeds_of(source)
    return None if seeds is None else format_seeds(seeds)

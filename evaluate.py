"""Measure images against a reference: python evaluate.py --images out --ref digits"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erk.jobs.cli import CONTEXT, clean_exit

if TYPE_CHECKING:  # torch and the metrics load when a command runs: --help answers at once
    from metrics.evaluation import Result
    from metrics.images import ImageSource
    from metrics.references import Reference

FEW = 5000  # images, below which the bias of FD and IS is larger than most differences
SHOWN = {
    "fd": "FD",
    "precision": "precision",
    "recall": "recall",
    "is_mean": "IS",
    "accuracy": "class recognised",
}


@click.command(context_settings=CONTEXT)
@click.option("--images", metavar="PATH", default="out", help="Folder, .zip or .npz of images.")
@click.option("--ref", metavar="NAME|FILE",
              help="What to compare with: digits, or a .npz with mu and sigma.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE",
              help="Where the result row goes.  [default: results/IMAGES-REF.json]")  # fmt: skip
@click.option("--csv", "csv_path", metavar="FILE", help="Write the row as CSV, too.")
@click.option("--batch", default=256, help="Images per network call.")
@click.option("--blocks", default=5, help="Seed blocks of the error bars; 1 gives no error bars.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda", "mps"]),
              help="Where to compute; auto: CUDA, then MPS, then the CPU.")  # fmt: skip
@clean_exit
def main(**options: Any) -> None:
    """Measure images: Fréchet distance, precision, recall and Inception score."""
    images, ref = options["images"], options["ref"]
    if not ref:
        raise ValueError("--ref is missing: say what to compare with, for example --ref digits")
    if options["blocks"] < 1:
        raise ValueError(f"--blocks must be at least 1 (no error bars), not {options['blocks']}")
    row, text = evaluate(images, ref, options["batch"], options["blocks"], options["device"])
    from metrics.table import to_csv, to_json, write

    default = Path("results") / f"{_name(images)}-{_name(ref)}.json"
    click.echo(text, nl=False)
    click.echo(f"row written to {write(options['json_path'] or default, to_json(row))}")
    if options["csv_path"]:
        click.echo(f"row written to {write(options['csv_path'], to_csv([row]))}")


def _name(path: str) -> str:
    """What a result file calls a path: a/out is a-out, out/images.zip is out-images."""
    place = Path(path).resolve()
    inside = place.is_relative_to(Path.cwd()) and place != Path.cwd()
    parts = place.relative_to(Path.cwd()).parts if inside else place.parts[-2:]
    joined = "-".join(part for part in parts if part != place.anchor)
    return joined.removesuffix(".zip").removesuffix(".npz")


def evaluate(
    images: str, ref: str, batch: int, blocks: int, device: str
) -> tuple[dict[str, Any], str]:
    """The result row of ``images`` against ``ref`` and the table that shows it."""
    from erk.world import pick_device, provenance
    from metrics.evaluation import fd_floor, measure, to_row
    from metrics.extractors import load_extractor
    from metrics.images import labels_of, open_images, read_batches
    from metrics.references import load_reference

    place = pick_device(device)
    source = open_images(images)
    extractor = load_extractor("digits", str(place))
    reference = load_reference(ref, extractor)
    labels = labels_of(source, classes=10)
    blocks = blocks if len(source.names) >= 2 * blocks else 1
    result = measure(
        read_batches(source, batch), extractor, reference, labels=labels, blocks=blocks
    )
    row = {"images": images, "seeds": _seeds(source)} | to_row(result)
    if reference.features is not None:
        balanced = labels is not None and reference.labels is not None
        floor = fd_floor(reference, result.metrics.n, balanced=balanced)
        row |= {"fd_floor": floor.value, "fd_floor_std": floor.error}
    row |= provenance(place) | {"run": source.run}
    return row, _report(row, result, reference)


def _report(row: dict[str, Any], result: "Result", reference: "Reference") -> str:
    from metrics.table import cell, to_text

    lines = [
        {"metric": shown, "value": row[name], "standard error": row[f"{name}_se"]}
        for name, shown in SHOWN.items()
        if row[name] is not None
    ]
    head = f"{row['images']}: {row['n']} images against {reference.name}"
    notes = [f"{head}, protocol {result.protocol}"]
    if "fd_floor" in row:
        floor = cell((row["fd_floor"], row["fd_floor_std"]))
        notes.append(f"FD floor {floor}: what as many real images get, drawn again and again")
    if result.blocks:
        notes.append(f"standard errors from {row['blocks']} seed blocks of {row['block_n']} images")
    if row["run"].get("complete") is False:
        notes.append(f"the run is not complete: it is to make {row['run'].get('images')} images")
    if reference.features is None:
        notes.append("precision and recall need real features, and this reference has none")
    if row["n"] < FEW:
        notes.append(
            f"FD falls and IS rises with N: compare these {row['n']} images only with as many"
        )
    if row["n"] <= len(reference.mean):
        notes.append(
            f"{row['n']} images are too few for {len(reference.mean)} features: "
            "FD is far above its value at large N"
        )
    return "\n".join([*notes, "", to_text(lines)])


def _seeds(source: "ImageSource") -> Any:
    """Seeds as in ``0-99,120``: what run.json says, else what the file names say."""
    from erk.jobs.folder import format_seeds
    from metrics.images import seeds_of

    if "seeds" in source.run:
        return source.run["seeds"]
    seeds = seeds_of(source)
    return None if seeds is None else format_seeds(seeds)


if __name__ == "__main__":
    main()

"""Measure images against a reference: python evaluate.py --images out --ref imagenet512

python evaluate.py --images out --ref imagenet512 --real imagenet-val-512.zip
torchrun --nproc-per-node 8 evaluate.py --images out --ref imagenet512
python evaluate.py --images on --paired off --ref digits     # the same seeds: is it better?
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erk import __version__
from erk.commands.cli import CONTEXT, clean_exit

if TYPE_CHECKING:  # torch and the metrics load when a command runs: --help answers at once
    from erk.runtime.distributed import World
    from metrics.images import ImageSource
    from metrics.judge import Judge, Verdict

TOLD = ("real", "protocol", "metrics", "num", "seed", "groups", "weights", "extractor_precision")
DEFAULTS = {"seed": 0, "groups": 10, "weights": (), "extractor_precision": "fp32"}
PASSED = ("protocol", "real", "allow_random", "cache", "batch", "skip_corrupt", "offline", "groups")


def _list_names(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from metrics.protocols import PROTOCOLS
        from metrics.references import describe

        click.echo("References (--ref)\n" + "\n".join(f"  {line}" for line in describe()))
        click.echo("Protocols (--protocol)")
        for one in PROTOCOLS.values():
            click.echo(f"  {one.name}: {', '.join(one.columns)} ({one.source})")
        context.exit()


@click.command(context_settings=CONTEXT)
@click.option("--images", metavar="PATH", default="out", help="Folder, .zip or .npz of images.")
@click.option("--paired", metavar="PATH", help="A second run with the same seeds; the difference "
              "is given with its standard error.")  # fmt: skip
@click.option("--ref", metavar="NAME|FILE", help="What to compare with: imagenet512, digits, ... "
              "(--list), or a file of statistics.")  # fmt: skip
@click.option("--real", metavar="PATH", help="Real images, for precision and recall.")
@click.option("--protocol", metavar="NAME", help="Whose definitions (--list).  "
              "[default: the one that the reference is made for]")  # fmt: skip
@click.option("--metrics", metavar="LIST", help="Some of the protocol's metrics: fid,is.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_names,
              help="Print references and protocols and exit.")  # fmt: skip
@click.option("--num", type=int, metavar="N", help="Measure N of the images.  [default: all]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Which N: drawn as EDM2 draws them."
)
@click.option("--groups", default=10, help="Groups of seeds of the error bars; 1 gives none.")
@click.option("--json", "json_path", metavar="FILE",
              help="Where the result row goes.  [default: results/IMAGES-REF.json]")  # fmt: skip
@click.option("--csv", "csv_path", metavar="FILE", help="Write the row as CSV, too.")
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--shard", metavar="I/N", help="Only extract every N-th part, from I = 0 on; the "
              "same command without it then puts all together.")  # fmt: skip
@click.option("--cache", metavar="DIR", help="Where features are kept.  [default: in ERK_CACHE]")
@click.option("--cache-limit", type=click.FloatRange(min=0), default=40.0, metavar="GIB",
              help="Oldest features are removed beyond this size.")  # fmt: skip
@click.option("--batch", default=64, help="Images per network call.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="Threads that decode.  [default: by the cores]")  # fmt: skip
@click.option("--memory", type=click.IntRange(min=1), metavar="MIB", help="Memory for neighbours, "
              "beside the features.  [default: 64, on CUDA 2048]")  # fmt: skip
@click.option("--extractor-precision", type=click.Choice(["fp32", "tf32", "fp16", "bf16"]),
              default="fp32", help="What extractors compute in; references are made in fp32.  "
              "(docs/performance.md)")  # fmt: skip
@click.option("--weights", multiple=True, metavar="NAME=FILE",
              help="Weights of an extractor, from a file or random:SEED.")  # fmt: skip
@click.option("--allow-random-weights", "allow_random", is_flag=True,
              help="For trials: numbers then measure nothing.")  # fmt: skip
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda", "mps"]),
              help="Where to compute; auto: CUDA, then MPS, then the CPU.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@click.version_option(__version__)
@clean_exit
def main(**options: Any) -> None:
    """Measure images: FID, FD-DINOv2, precision, recall, Inception score, with standard errors.

    Every image is decoded once. Features are kept, so a killed run goes on where it was, and
    measuring again takes seconds.
    """
    from erk.generation.record import check_writable
    from erk.runtime.distributed import join, pick_device
    from erk.runtime.shards import shard_of
    from metrics.images import open_images, subset
    from metrics.judge import check_size

    for place in (options["json_path"] or "results/row", options["csv_path"]):
        if place is not None:
            check_writable(Path(place).parent)
    device = pick_device(options["device"])
    share = shard_of(options["shard"], {})
    if share is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("--shard and torchrun both divide the work: use one of them")
    runs = [options["images"], *([options["paired"]] if options["paired"] else [])]
    by = _judge(options, device)
    sources = [subset(open_images(run), options["num"], options["seed"]) for run in runs]
    _check_pair(sources)
    for source in sources:
        check_size(by, source)
    with join(device) as world:
        verdicts = [_measure(by, source, world, share, options) for source in sources]
        if world.rank == 0 and share is None:
            _tell(by, sources, [one for one in verdicts if one is not None], options)


def _judge(options: dict[str, Any], device: Any) -> "Judge":
    from erk.runtime.memory import keep_freed_memory
    from metrics.judge import load_judge

    if device.type == "cpu":
        keep_freed_memory()
    metrics, weights = options["metrics"], options["weights"]
    wrong = next((text for text in weights if "=" not in text), None)
    if wrong is not None:
        raise ValueError(f"--weights wants NAME=FILE, such as inception=random:0, not '{wrong}'")
    return load_judge(
        options["ref"],
        metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
        weights=dict(text.split("=", 1) for text in weights),
        memory=options["memory"] and options["memory"] * 2**20,
        device=device,
        precision=options["extractor_precision"],
        **{name: options[name] for name in PASSED},
    )


def _check_pair(sources: "list[ImageSource]") -> None:
    from metrics.images import seeds_of

    names = [seeds_of(source) or source.names for source in sources]
    if names[0] != names[-1]:
        raise ValueError(
            f"{sources[0].path} ({len(names[0])} images) and {sources[-1].path} ({len(names[-1])}) "
            "are not of the same seeds: a paired comparison needs the same names in both"
        )


def _measure(
    by: "Judge",
    source: "ImageSource",
    world: "World",
    share: tuple[int, int] | None,
    options: dict[str, Any],
) -> "Verdict | None":
    """The verdict on one set of images; None where another process or a later run gives it."""
    from metrics.extraction import image_chunks
    from metrics.images import labels_of, seeds_of
    from metrics.judge import extract_share, measure_chunks

    chunks = image_chunks(source, by.how, options["workers"])
    if share is None:
        labels = labels_of(source, classes=10) if by.protocol.name == "digits" else None
        by_seed = seeds_of(source) is not None
        return measure_chunks(by, world, chunks, len(source.names), labels, by_seed)
    mine = extract_share(by, world, chunks, len(source.names), share)
    click.echo(f"{source.path}: the features of {mine} images are in {by.how.folder}; run this "
               "without --shard when all shards are done")  # fmt: skip
    return None


def _tell(
    by: "Judge",
    sources: "list[ImageSource]",
    verdicts: "list[Verdict]",
    options: dict[str, Any],
) -> None:
    """Write the rows and print the tables."""
    from erk.runtime.provenance import provenance
    from metrics.report import differences, notes, paired_text, text, to_row
    from metrics.store import trim
    from metrics.table import to_csv, to_json, write

    if len({tuple(verdict.found.kept.tolist()) for verdict in verdicts}) > 1:
        raise ValueError(
            "different images of the two runs are broken, so that they are no pairs: remake them"
        )
    made_by = provenance(by.device)
    rows = []
    for source, verdict in zip(sources, verdicts, strict=True):
        about = {"images": str(source.path), "seeds": _seeds(source),
                 "skipped": len(source.names) - verdict.result.n}  # fmt: skip
        rows.append(about | to_row(by, verdict) | made_by | {"run": source.run})
    if len(rows) == 1:
        click.echo(text(by, rows[0], verdicts[0].result))
    else:
        found = differences(verdicts[0].result, verdicts[1].result)
        rows[0]["minus"] = {"images": rows[1]["images"]} | {
            name: one._asdict() for name, one in found.items()
        }
        for row, verdict in zip(rows, verdicts, strict=True):
            click.echo(notes(by, row, verdict.result) + "\n")
        click.echo(paired_text(rows, found))
    for row in rows:
        place = Path("results") / f"{_name(row['images'])}-{_against(options)}.json"
        place = Path(options["json_path"]) if options["json_path"] and row is rows[0] else place
        there = " (in place of an earlier one)" if place.exists() else ""
        click.echo(f"row written to {write(place, to_json(row))}{there}")
    if options["csv_path"]:
        told = {"replicates", "run", "minus"}  # too much for a table
        flat = [
            {
                k: json.dumps(v) if isinstance(v, dict) else v
                for k, v in row.items()
                if k not in told
            }
            for row in rows
        ]
        click.echo(f"rows written to {write(options['csv_path'], to_csv(flat))}")
    freed = trim(by.how.folder, int(options["cache_limit"] * 2**30))
    if freed:
        click.echo(f"{freed / 2**30:.1f} GiB of old features removed from {by.how.folder}")


def _name(path: str) -> str:
    """What a result file calls a path: a/out is a-out, out/images.zip is out-images-zip."""
    place = Path(path).resolve()
    inside = place.is_relative_to(Path.cwd()) and place != Path.cwd()
    parts = place.relative_to(Path.cwd()).parts if inside else place.parts[-2:]
    joined = "-".join(part for part in parts if part != place.anchor)
    return re.sub(r"\.(zip|npz|pkl)$", r"-\1", joined)


def _against(options: dict[str, Any]) -> str:
    """The reference, and the digits of a hash of all else that changes what is measured."""
    told = {name: options[name] for name in TOLD if options[name] != DEFAULTS.get(name)}
    code = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:6]
    return _name(options["ref"] or options["real"]) + (f"-{code}" if told else "")


def _seeds(source: "ImageSource") -> Any:
    """Seeds as in ``0-99,120``, from the names; None: they have no seeds."""
    from erk.generation.seeds import format_seeds
    from metrics.images import seeds_of

    seeds = seeds_of(source)
    return None if seeds is None else format_seeds(seeds)


if __name__ == "__main__":
    main()

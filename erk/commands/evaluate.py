"""The command `evaluate`: measure images against a reference."""

import os
from typing import TYPE_CHECKING, Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import FiniteFloat, command, require_different

if TYPE_CHECKING:  # torch and the metrics load when the command runs: --help answers at once
    import torch

    from erk.runtime.distributed import World
    from metrics.evaluation import Evaluation
    from metrics.evaluator import Evaluator
    from metrics.features import Features
    from metrics.images import ImageSource

PASSED = ("allow_random", "cache", "batch", "skip_corrupt", "offline", "groups")


def _list_names(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from metrics.protocols import known_protocols
        from metrics.references import describe

        click.echo("References (--ref)\n" + "\n".join(f"  {line}" for line in describe()))
        click.echo("Protocols (--protocol)")
        for one in known_protocols().values():
            click.echo(f"  {one.name}: {', '.join(one.columns)} ({one.source})")
        context.exit()


@command(
    "erk evaluate --images out --ref imagenet512 --real imagenet-val-512.zip",
    "erk evaluate --images on --paired off --ref digits     # the same seeds: is it better?",
)
@shared.subset_options(
    cloup.option("--images", metavar="PATH", default="out", help="Folder, .zip or .npz of images."),
    cloup.option("--paired", metavar="PATH", help="A second run of the same seeds: also give "
                 "the difference, --images minus --paired, with its standard error."),
)  # fmt: skip
@cloup.option_group(
    "Reference and metrics",
    cloup.option("--ref", metavar="NAME|FILE", help="Reference, such as imagenet512 or digits "
                 "(--list prints all), or a file of statistics."),
    cloup.option("--real", metavar="PATH", help="Real images, for precision and recall."),
    cloup.option("--protocol", metavar="NAME", help="Definitions of the metrics (--list prints "
                 "all).  [default: the reference's protocol]"),
    cloup.option("--metrics", metavar="LIST", help="Some of the protocol's metrics, such as "
                 "fid,is.  [default: all]"),
    cloup.option("--groups", type=int, default=10,
                 help="Groups of seeds for the standard errors; 1 gives none."),
    cloup.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_names,
                 help="Print references and protocols and exit."),
)  # fmt: skip
@cloup.option_group(
    "Output",
    cloup.option("--json", "json_path", metavar="FILE",
                 help="Write the result row to this file.  [default: in results/, named after the "
                 "images, the reference and a code of other options]"),
    cloup.option("--csv", "csv_path", metavar="FILE", help="Also write the row as CSV."),
    cloup.option("--shard", metavar="I/N", help="Only extract the features of every N-th part of "
                 "the images, starting at I (from 0); after all shards, the same command without "
                 "--shard measures."),
)  # fmt: skip
@shared.feature_options(
    cloup.option("--cache-limit", type=FiniteFloat(0), default=40.0, metavar="GIB",
                 help="Remove the oldest features beyond this size."),
    cloup.option("--workers", type=click.IntRange(min=1), metavar="N",
                 help="Threads that decode images.  [default: from the number of cores]"),
    cloup.option("--memory", type=click.IntRange(min=1), metavar="MIB", help="Memory for "
                 "precision and recall, in addition to the features.  [default: 64, on CUDA 2048]"),
    cloup.option("--extractor-precision", type=click.Choice(["fp32", "tf32", "fp16", "bf16"]),
                 default="fp32", help="Precision of the extractors; references were computed in "
                 "fp32 (docs/performance.md)."),
)  # fmt: skip
def main(**options: Any) -> None:
    """Measure FID, FD-DINOv2, precision, recall and Inception score, with standard errors.

    Every image is decoded once. Features are cached, so the same command resumes an interrupted
    run, and measuring again takes seconds.
    """
    from erk.io.atomic import check_target
    from erk.runtime.shards import shard_of
    from metrics.images import open_images

    # what needs neither torch, whose import takes seconds, nor a download comes first
    for path in (options["json_path"] or "results/row", options["csv_path"]):
        if path is not None:
            check_target(path, *(options[name] for name in ("images", "paired", "real", "ref")))
    require_different("--json", options["json_path"], "--csv", options["csv_path"])
    shard = shard_of(options["shard"], {})
    if shard is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("--shard and torchrun both divide the work: use one of them")
    _check_options(options)
    paths = [options[name] for name in ("images", "paired", "real") if options[name] is not None]
    sources = [*map(open_images, paths)]
    real = sources.pop() if options["real"] is not None else None

    from erk.commands.result_rows import report
    from erk.runtime.distributed import join, pick_device
    from metrics.selection import subset

    device = pick_device(options["device"])
    sources = [subset(one, options["num"], options["seed"]) for one in sources]
    _check_pair(sources)
    _check_known_sizes(sources, real, options)
    evaluator = _load_evaluator(options, real, device)
    for source in sources:
        evaluator.check_source(source)
    with join(device) as world:
        if shard is not None:
            for source in sources:
                _extract_shard(evaluator, source, world, shard, options)
            return
        results = _evaluate(evaluator, sources, world, options)
    if results:
        report(evaluator, sources, results, options)


def _load_evaluator(
    options: dict[str, Any], real: "ImageSource | None", device: "torch.device"
) -> "Evaluator":
    from erk.runtime.memory import keep_freed_memory
    from metrics.evaluator import load_evaluator
    from metrics.options import Options

    if device.type == "cpu":
        keep_freed_memory()
    return load_evaluator(
        options["ref"],
        protocol=options["protocol"],
        metrics=options["metrics"],
        real=real,
        options=Options(
            weights=shared.weights_of(options["weights"]),
            memory=options["memory"] and options["memory"] * 2**20,
            device=device,
            precision=options["extractor_precision"],
            **{name: options[name] for name in PASSED},
        ),
    )


def _check_options(options: dict[str, Any]) -> None:
    """Raise ValueError before anything is read if there is nothing to compare with."""
    if options["ref"] is None and options["real"] is not None and options["protocol"] is None:
        raise ValueError(
            "--protocol is missing: say how to measure, for example --protocol torch-fidelity or "
            "--protocol edm2"
        )
    if options["ref"] is None and options["real"] is None:
        raise ValueError(
            "--ref is missing: say what to compare with, for example --ref imagenet512 or --ref "
            "digits; or compare with real images alone, --real DIR --protocol NAME"
        )


def _check_known_sizes(
    sources: "list[ImageSource]", real: "ImageSource | None", options: dict[str, Any]
) -> None:
    """Raise ValueError for sizes that differ, as far as they are known before a download."""
    from metrics.chunks import check_headers
    from metrics.evaluator import sizes_of
    from metrics.features import size_of
    from metrics.sizes import check_same_size

    skip_corrupt = options["skip_corrupt"]
    others = sizes_of(options["ref"], real, skip_corrupt)
    for source in sources:
        check_same_size({str(source.path): size_of(source, skip_corrupt)} | others)
    for one in (*sources, real):
        if one is not None:
            check_headers(one, skip_corrupt)


def _check_pair(sources: "list[ImageSource]") -> None:
    from metrics.selection import seeds_of

    names = [seeds_of(source) or source.names for source in sources]
    if names[0] != names[-1]:
        raise ValueError(
            f"{sources[0].path} ({len(names[0])} images) and {sources[-1].path} ({len(names[-1])}) "
            "are not of the same seeds: a paired comparison needs the same names in both"
        )
    settings = [source.run.get("settings", {}) for source in sources]
    policies = [(one.get("class"), one.get("labels")) for one in settings]
    known = [source.labels for source in sources]
    classes = policies if None in known else known
    if classes[0] != classes[-1] and (None, None) not in classes:
        raise ValueError(
            f"{sources[0].path} and {sources[-1].path} have different classes for the same seeds: "
            "a paired comparison needs the same --class or --labels in both"
        )


def _evaluate(
    evaluator: "Evaluator",
    sources: "list[ImageSource]",
    world: "World",
    options: dict[str, Any],
) -> "list[tuple[Features, Evaluation]]":
    """Extract and evaluate every set of images; [] on all ranks but the first."""
    from metrics.features import image_chunks
    from metrics.selection import is_in_seed_order

    real, results = evaluator.extract_real(world), []
    in_seed_order = all(map(is_in_seed_order, sources))  # else groups are drawn, alike for both
    for source in sources:
        chunks = image_chunks(source, evaluator.plan, options["workers"])
        features = evaluator.extract(chunks, world, len(source.names))
        if features is not None:
            evaluation = evaluator.evaluate_source(source, features, real, in_seed_order)
            results.append((features, evaluation))
    return results


def _extract_shard(
    evaluator: "Evaluator",
    source: "ImageSource",
    world: "World",
    shard: tuple[int, int],
    options: dict[str, Any],
) -> None:
    """Store the features of one shard of a set of images."""
    from metrics.features import image_chunks

    chunks = image_chunks(source, evaluator.plan, options["workers"])
    count = evaluator.extract_shard(chunks, world, len(source.names), shard)
    click.echo(
        f"{source.path}: the features of {count} images are in {evaluator.plan.cache}; run this "
        "command without --shard when all shards are done"
    )


if __name__ == "__main__":
    main()

"""`erk generate --evaluate`: from the sampler to the metrics, without images on the disk."""

from pathlib import Path
from typing import Any, cast

import click

from erk.generation.job import plain
from erk.generation.options import open_job
from erk.generation.stream import image_chunks, summarize
from erk.io.atomic import check_target, save_file
from erk.io.cache import digest
from erk.runtime.distributed import join, pick_device
from erk.runtime.shards import shard_of
from metrics.chunks import Chunks
from metrics.evaluator import Options, load_evaluator
from metrics.report import text, to_json

NEED_IMAGES = ("trace", "grid", "subdirs", "profile", "verify")


def generate_and_evaluate(
    reference: str,
    options: dict[str, Any],
    *,
    real: str | None = None,
    protocol: str | None = None,
    json_path: str | None = None,
) -> None:
    """Measure the images of a job as they are sampled; print and write the result row.

    The features are cached, so the same command resumes an interrupted run.
    """
    unused = next((name for name in NEED_IMAGES if options[name]), None)
    if unused is not None:
        raise ValueError(f"--{unused} needs images on the disk: leave out --{unused} or --evaluate")
    check_target(json_path or "results/row")
    device, shard = pick_device(options["device"]), shard_of(options["shard"])
    evaluator = load_evaluator(
        reference,
        real=real,
        protocol=protocol,
        options=Options(device=device, offline=options["offline"]),
    )
    job = open_job(options)
    chunks = cast(Chunks, image_chunks(job))  # an ImageChunk has the fields of a Chunk
    with join(device) as world:
        if shard is not None:
            evaluator.extract_shard(chunks, world, len(job.seeds), shard)
            click.echo(
                f"shard {shard[0]} of {shard[1]} done, features in {evaluator.plan.cache}; when "
                "all shards are done, run this command with --shard 0/1"
            )
            return
        images = evaluator.extract_real(world)
        features = evaluator.extract(chunks, world, len(job.seeds))
    if features is None:  # another rank has the result
        return
    evaluation = evaluator.evaluate(features, images, in_seed_order=True)
    key = job.key()
    name = options["preset"] or Path(options["net"]).stem
    run = {"settings": plain(job.identity), "settings_key": key} | job.metadata
    row = {"images": f"{name}, not stored", "seeds": job.metadata["seeds"]}
    row |= evaluation.to_dict() | summarize(features.metadata, job) | {"run": run}
    code = digest([key, reference, real, protocol], 0)[:8]
    path = Path(json_path or Path("results") / f"{name}-{Path(reference).stem}-{code}.json")
    replaced = " (replaces an earlier one)" if path.exists() else ""
    click.echo(text(row["images"], evaluation))
    click.echo(f"row written to {save_file(path, to_json(row))}{replaced}")

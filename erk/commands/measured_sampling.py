"""`erk generate --evaluate`: from the sampler to the metrics, without images on the disk."""

from pathlib import Path
from typing import Any

import click

from erk.generation.job import plain
from erk.generation.metadata import check_writable
from erk.generation.options import open_job
from erk.generation.stream import image_chunks, summarize
from erk.runtime.distributed import join, pick_device
from erk.runtime.shards import shard_of
from metrics.judge import extract_share, load_judge, measure_chunks
from metrics.report import text, to_row
from metrics.table import to_json, write

NEED_IMAGES = ("trace", "grid", "subdirs", "profile")


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
    check_writable(Path(json_path or "results/row").parent)
    device, shard = pick_device(options["device"]), shard_of(options["shard"])
    evaluator = load_judge(
        reference, device=device, offline=options["offline"], real=real, protocol=protocol
    )
    job = open_job(options)
    with join(device) as world:
        if shard is not None:
            extract_share(evaluator, world, image_chunks(job), len(job.seeds), shard)
            click.echo(
                f"shard {shard[0]} of {shard[1]} done, features in {evaluator.how.folder}; when "
                "all shards are done, run this command with --shard 0/1"
            )
            return
        verdict = measure_chunks(evaluator, world, image_chunks(job), len(job.seeds))
    if verdict is None:  # another rank has the result
        return
    key = job.key()
    name = options["preset"] or Path(options["net"]).stem
    run = {"settings": plain(job.identity), "settings_key": key} | job.metadata
    row = {"images": f"{name}, not stored", "seeds": job.metadata["seeds"]}
    row |= to_row(evaluator, verdict) | summarize(verdict.found.facts, job.batch) | {"run": run}
    path = json_path or Path("results") / f"{name}-{Path(reference).stem}-{key[:8]}.json"
    click.echo(text(evaluator, row, verdict.result))
    click.echo(f"row written to {write(path, to_json(row))}")

"""`erk generate --evaluate`: from the sampler to the metrics, without images on the disk."""

from pathlib import Path
from typing import Any, cast

import click
import torch

from erk.generation.job import Job, plain
from erk.generation.options import open_job
from erk.generation.stream import image_chunks, summarize
from erk.io.atomic import check_target, save_file
from erk.io.cache import digest
from erk.models.encoders import VAEEncoder
from erk.runtime.distributed import join, pick_device
from erk.runtime.shards import shard_of
from metrics.chunks import Chunks, check_headers
from metrics.evaluator import Evaluator, load_evaluator
from metrics.images import open_images
from metrics.options import Options
from metrics.protocols import find_protocol
from metrics.references import known_size
from metrics.report import text, to_json
from metrics.sizes import Size, check_same_size

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
    check_target(json_path or "results/row", reference, real)
    device, shard = pick_device(options["device"]), shard_of(options["shard"])
    evaluator, job = _opened(reference, options, real, protocol)
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


def _opened(
    reference: str, options: dict[str, Any], real: str | None, protocol: str | None
) -> tuple[Evaluator, Job]:
    """Load what the images are evaluated with, and the job.

    For a reference by name, whose size is known, the job comes first: if the sizes differ, nothing
    is downloaded for the evaluation.
    """
    size, job = known_size(reference), None
    rules = None if protocol is None else find_protocol(protocol)
    source = None if real is None else open_images(real)
    if source is not None:
        check_headers(source)
    if size is not None:
        job = open_job(options)
        sizes = {"the run": _image_size(job, options["vae"]), f"the reference {reference}": size}
        check_same_size(sizes)
    chosen = Options(device=pick_device(options["device"]), offline=options["offline"])
    evaluator = load_evaluator(reference, real=source, protocol=rules, options=chosen)
    return evaluator, job or open_job(options)


def _image_size(job: Job, vae: str | None) -> Size | None:
    """Return the size of a job's images; None: that of a VAE which --vae names, not loaded yet."""
    model = job.model
    if isinstance(model.encoder, VAEEncoder):
        _, height, width = model.sample_shape
        return (8 * height, 8 * width) if vae is None else None
    height, width = model.decode(torch.zeros(1, *model.sample_shape)).shape[-2:]
    return height, width

"""What `erk generate` does: options in, a finished folder out, spread over processes."""

import functools
import io
import os
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from erk.generation.archives import write_grid
from erk.generation.job import Job
from erk.generation.options import plan_job
from erk.generation.record import check_writable
from erk.generation.run_folder import RunFolder
from erk.generation.sampling import ImageBatch, generate
from erk.generation.writer import beside, spare_cores, threads
from erk.io.atomic import write_file
from erk.method.corrections import Card
from erk.runtime.distributed import World, barrier, broadcast, gather, join
from erk.runtime.shards import shard_of
from erk.runtime.timing import OFF, Timer


def run(**options: Any) -> None:
    """Make all pictures that `options` (those of generate.py) ask for and that are not there yet.

    Everything that can be checked is checked before weights are read, and everything else before
    anything is written. Raises ValueError, OSError or NonFiniteError, each with one sentence.
    """
    plan, shard = plan_job(options), shard_of(options["shard"])
    if shard is not None:
        click.echo(f"shard {shard[0]} of {shard[1]}: one seed in {shard[1]}", err=True)
    place = Path(options["outdir"])
    folder = RunFolder(place, options["kind"], options["subdirs"], plan.identity, shard)
    pending = folder.check(plan.seeds)
    if options["trace"] is not None:
        check_writable(Path(options["trace"]).absolute().parent)
    if not pending and folder.record:
        if os.environ.get("RANK", "0") == "0":
            _nothing_to_make(folder, plan.seeds, options)
        return
    card = plan.settings.erk
    if isinstance(card, Card) and card.warning and os.environ.get("RANK", "0") == "0":
        click.echo(card.warning, err=True)
    job = plan.load()
    folder.check_networks(job.metadata)
    with join(plan.device) as world:
        folder.rank = world.rank
        folder.profile = Timer(plan.device) if options["profile"] else OFF
        pending = broadcast(world, pending)
        if world.rank == 0:
            folder.begin({**job.metadata, "processes": world.size})
        barrier(world)
        try:
            _make(world, folder, pending, job, options["trace"])
        except Exception:  # bad weights, no VAE, a full disk: no empty run stays behind
            if world.size == 1 and shard is None:  # others may be writing there still
                folder.abandon()
            raise
        barrier(world)
        if world.rank == 0:
            _end(folder, job.seeds, options)
            if options["profile"]:
                click.echo(folder.profile.table())


def _make(world: World, folder: RunFolder, pending: list[int], job: Job, trace: str | None) -> None:
    """This process's share: every size-th batch of the pending seeds.

    Batches are encoded and written while the next ones are sampled.
    """
    size = job.batch
    batches = [pending[i : i + size] for i in range(0, len(pending), size)]
    own = [seed for batch in batches[world.rank :: world.size] for seed in batch]
    made = generate(job, own, trace=trace is not None, profile=folder.profile)
    traces = []
    quiet = 0.5 if sys.stderr.isatty() else 30  # a log file needs no line every moment
    with (
        tqdm(
            total=len(own), desc="Sampling", unit="img", mininterval=quiet, disable=world.rank > 0
        ) as bar,
        folder.profile.host("wall"),
        threads(spare_cores()) as folder.each,
        beside(functools.partial(folder.profile.host, "waited")) as hand_over,
    ):
        for batch in made:
            hand_over(_store, folder, batch, bar)
            if batch.trace is not None:
                traces.append({"seeds": np.asarray(batch.seeds), **batch.trace})
    if trace is not None:
        parts = [part for share in gather(world, traces) for part in share]
        if parts and world.rank == 0:
            _write_trace(Path(trace), parts, job.settings.sigmas(job.model)[:-1].numpy())


def _store(folder: RunFolder, batch: ImageBatch, bar: Any) -> None:
    """Write a batch; runs in a thread."""
    folder.add(
        batch.seeds, batch.wait().numpy(), batch=batch.size, nfe=batch.nfe,
        guide_nfe=batch.guide_nfe,
    )  # fmt: skip
    bar.update(len(batch.seeds))


def _end(folder: RunFolder, seeds: list[int], options: dict[str, Any]) -> None:
    """Complete the run, or, as one of several shards, leave that to the one that ends last."""
    grid_of = seeds[:100] if options["grid"] else []
    if folder.shard is None:
        folder.finish(grid_of)
    elif not folder.finish_together(grid_of):
        i, n = folder.shard
        click.echo(f"{folder.folder}: shard {i} of {n} is done; the shard that ends last completes "
                   "the run, and so does this command with --shard 0/1")  # fmt: skip
        return
    if grid_of:
        click.echo(f"wrote {folder.folder / 'grid.png'}")
    _report(folder, seeds)


def _nothing_to_make(folder: RunFolder, seeds: list[int], options: dict[str, Any]) -> None:
    if options["trace"] is not None:
        click.echo("no trace was written: it covers the pictures that a run makes, and none was.")
    if not folder.record["complete"]:  # stopped before its last words, or made by shards
        if folder.shard is None:
            folder.resume(seeds)
        _end(folder, seeds, options)
        return
    folder.tidy()
    click.echo(f"{folder.folder}: all {len(seeds)} pictures are there; nothing to do.")
    place = folder.folder / "grid.png"
    if options["grid"] and folder.kind == "png" and not place.exists():
        write_grid(folder.folder, folder.images(seeds[:100]))
        click.echo(f"wrote {place}")


def _write_trace(place: Path, parts: list[dict[str, Any]], sigmas: Any) -> None:
    """Telemetry [steps, N] of the N seeds made in this run, in seed order, with the sigmas."""
    seeds = np.concatenate([part["seeds"] for part in parts])
    order = np.argsort(seeds)
    names = [name for name in parts[0] if name != "seeds"]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}
    stream = io.BytesIO()
    rows = {name: values[:, order] for name, values in joined.items()}
    content: dict[str, Any] = {"seeds": seeds[order], "sigmas": sigmas, **rows}
    np.savez_compressed(stream, **content)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_file(place, stream.getvalue())
    click.echo(f"wrote {place}")


def _report(folder: RunFolder, seeds: list[int]) -> None:
    told = folder.record
    nfe = f", NFE {told['nfe']:g}" if "nfe" in told else ""  # else their lines were lost
    if told.get("guide_nfe"):
        nfe += f" + {told['guide_nfe']:g} of the guide"
    click.echo(f"{folder.folder}: {len(seeds)} pictures{nfe}{' per picture' if nfe else ''}.")
    if "batches" in told:
        sizes = ", ".join(f"{n} at {size}" for size, n in told["batches"].items())
        click.echo(f"batch sizes: {sizes}; {told['rounding']}")

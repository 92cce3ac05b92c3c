"""What `erk generate` does: options in, a finished folder out, spread over processes."""

import io
import os
from pathlib import Path
from typing import Any

import click
import numpy as np

from erk.generation.contents import GRID
from erk.generation.job import Job
from erk.generation.options import JobPlan, plan_job
from erk.generation.run_folder import RunFolder
from erk.generation.sampling import generate
from erk.io.atomic import check_target, save_file
from erk.models.compiling import compilation_key, keep_seconds
from erk.runtime.distributed import World, gather, join
from erk.runtime.progress import image_bar
from erk.runtime.shards import shard_of
from erk.runtime.timing import OFF, Timer

Shard = tuple[int, int] | None


def run(**options: Any) -> None:
    """Sample all missing images that the options of `erk generate` ask for.

    Options and folder are checked before weights are read, and everything else before anything is
    written. Raises ValueError, OSError, MemoryError or NonFiniteError with one sentence.
    """
    plan, shard = plan_job(options, Path(options["outdir"])), shard_of(options["shard"])
    if shard is not None:
        click.echo(f"shard {shard[0]} of {shard[1]}: one seed in {shard[1]}", err=True)
    folder = RunFolder.open(
        options["outdir"], plan, shard, grid=options["grid"], verify=options.get("verify", False)
    )
    if options["trace"] is not None:
        check_target(options["trace"])
    if _is_first():
        for notice in folder.notices:
            click.echo(notice, err=True)
    if folder.metadata and not folder.pending:
        if _is_first():
            _finish(folder, plan, options)
        return
    if plan.card is not None and plan.card.warning and _is_first():
        click.echo(plan.card.warning, err=True)
    job = plan.load()
    with join(plan.device) as world:
        timer = Timer(plan.device) if options["profile"] else OFF
        folder.prepare(job, world, timer)
        sampled = len(folder.pending)
        with folder:
            _sample(folder, job, world, options["trace"], timer)
        if world.rank == 0:
            if plan.compiled and sampled:
                keep_seconds(compilation_key(job.model.sha256, job.batch, plan.device))
            _report(folder, options, sampled)
            if options["profile"]:
                click.echo(timer.table())


def _is_first() -> bool:
    """Whether this is the first process of the run, before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


def _sample(folder: RunFolder, job: Job, world: World, trace: str | None, timer: Timer) -> None:
    """Sample this process's share; write the trace of all processes."""
    traces = []
    with image_bar(len(folder.pending), "Sampling", world.rank == 0) as bar:
        for batch in generate(job, folder.pending, trace=trace is not None, timer=timer):
            folder.write(batch)
            bar.finish(len(batch.seeds))
            if batch.trace is not None:
                traces.append({"seeds": np.asarray(batch.seeds), **batch.trace})
    if trace is not None:
        parts = [part for share in gather(world, traces) for part in share]
        if parts and world.rank == 0:
            _write_trace(Path(trace), parts, job.settings.sigmas(job.model)[:-1].numpy())


def _finish(folder: RunFolder, plan: JobPlan, options: dict[str, Any]) -> None:
    """Finish a run whose images all exist, without loading networks."""
    if options["trace"] is not None:
        click.echo("no trace was written: it covers the images that a run samples, and none was.")
    was_complete, had_grid = folder.is_complete, (folder.path / GRID).exists()
    with folder:
        pass
    if not was_complete:
        _report(folder, options, 0)
        return
    checked = "sha256 verified" if folder.verify else "sizes compared; --verify reads them"
    click.echo(f"{folder.path}: all {len(plan.seeds)} images exist; nothing to do ({checked}).")
    if not had_grid and (folder.path / GRID).exists():
        click.echo(f"wrote {folder.path / GRID}")


def _report(folder: RunFolder, options: dict[str, Any], sampled: int) -> None:
    """Print what was written, or that other shards still work on the run."""
    if not folder.is_complete:
        assert folder.shard is not None
        i, n = folder.shard
        click.echo(
            f"{folder.path}: shard {i} of {n} is done. In one folder, the shard that ends "
            "last completes the run; folders are joined by erk merge FOLDER... --dest DIR"
        )
        return
    if options["grid"]:
        click.echo(f"wrote {folder.path / GRID}")
    metadata = folder.metadata
    count = f"{metadata['images']} images"
    if 0 < sampled < metadata["images"] and folder.shard is None:
        count += f", {sampled} of them new"
    nfe = f", NFE {metadata['nfe']:g}" if "nfe" in metadata else ""  # else the log was lost
    if metadata.get("guide_nfe"):
        nfe += f" + {metadata['guide_nfe']:g} of the guide"
    click.echo(f"{folder.path}: {count}{nfe}{' per image' if nfe else ''}.")
    if "batches" in metadata:
        sizes = ", ".join(f"{n} at {size}" for size, n in metadata["batches"].items())
        click.echo(f"batch sizes: {sizes}; {metadata['rounding']}")


def _write_trace(path: Path, parts: list[dict[str, Any]], sigmas: np.ndarray) -> None:
    """Write telemetry [steps, N] of the N seeds sampled in this run, in seed order, and sigmas."""
    seeds = np.concatenate([part["seeds"] for part in parts])
    order = np.argsort(seeds)
    names = [name for name in parts[0] if name != "seeds"]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}
    stream = io.BytesIO()
    rows = {name: values[:, order] for name, values in joined.items()}
    content: dict[str, Any] = {"seeds": seeds[order], "sigmas": sigmas, **rows}
    np.savez_compressed(stream, **content)
    save_file(path, stream.getvalue())
    click.echo(f"wrote {path}, of the {len(seeds)} images sampled now")

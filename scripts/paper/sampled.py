"""Tables whose rows are sampled and measured: the same seeds and the same judge for every row.

A finished row is a file in results/rows, named by all that its numbers depend on, the code and the
judge included, and the features of every batch are in the store, so that a killed run goes on
where it was.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from erk.generation.job import Job, computation, image_identity, plain
from erk.generation.options import networks_of, open_job, plan_job
from erk.generation.stream import ImageChunk, image_chunks
from erk.io.atomic import save_file
from erk.io.download import sha256_of
from erk.models.model import fetch_checkpoint
from erk.runtime.distributed import World, broadcast, gather, join, pick_device
from metrics.evaluator import Evaluator, Options, load_evaluator
from metrics.images import fingerprint
from metrics.report import to_json
from scripts.paper.config import Config, Request, Row, chosen_rows
from scripts.paper.pages import Found, page_of
from scripts.paper.plan import describe, options_of_row, ref_of
from scripts.paper.render import to_md, write_page


class Planned(NamedTuple):
    """A row on its way to numbers."""

    row: Row
    options: dict[str, Any]  # generate.py's
    ref: str


def run(config: Config, request: Request) -> list[Path]:
    """Make the chosen rows that are not there yet and write the table; the files written.

    The table has all rows that are there, chosen or not, and names the others. With ``shard`` only
    features are made. Raises ValueError or OSError with one sentence.
    """
    if request.dry_run:
        click.echo(describe(config, request))
        return []

    def written(found: Sequence[Found]) -> list[Path]:
        return write_page(request.results, page_of(config, request, found))

    found = measure_rows(config, request, written)
    if found is None:
        return []
    click.echo(to_md(page_of(config, request, found)))
    return written(found)


def measure_rows(
    config: Config, request: Request, each: Callable[[Sequence[Found]], Any] | None = None
) -> list[Found] | None:
    """Make the chosen rows that are not there yet; what is known of every row of the config, in
    order, {} for those that are still to be made. None in all processes but the first, and for a
    shard. ``each`` sees the same after every row that was made.
    """
    planned = [
        Planned(row, options_of_row(config, row, request), ref_of(config, row, request.scale))
        for row in config.rows
    ]
    chosen = chosen_rows(config, request.rows)
    todo = [one for one in planned if one.row in chosen]
    device = pick_device(todo[0].options["device"])
    evaluators = _evaluators(planned, todo, request, device)
    with join(device) as world:
        todo = broadcast(world, [one for one in todo if not _found(one, evaluators, request)])
        for number, (one, job) in enumerate(_with_networks(todo), 1):
            made = _make(job, evaluators[one.ref], world, request.shard)
            if world.rank == 0:
                click.echo(f"{config.name} [{number}/{len(todo)}] {one.row.name}", err=True)
            if made is not None:
                save_file(_place(one, evaluators[one.ref], request), to_json(made))
                if each is not None:
                    each([_found(other, evaluators, request) for other in planned])
        if world.rank > 0:
            return None
    if request.shard is not None:
        index, count = request.shard
        click.echo(f"{config.name}: the features of shard {index} of {count} are made; run it "
                   "without --shard when all are")  # fmt: skip
        return None
    return [_found(one, evaluators, request) for one in planned]


def _evaluators(
    planned: Sequence[Planned], todo: Sequence[Planned], request: Request, device: torch.device
) -> dict[str, Evaluator]:
    """By reference; those that only other rows want are left out where their files are missing."""
    needed, evaluators = {one.ref for one in todo}, {}
    for ref in dict.fromkeys(one.ref for one in planned):
        offline = request.offline or ref not in needed
        try:
            options = Options(device=device, cache=request.cache, offline=offline)
            evaluators[ref] = load_evaluator(ref, real=request.real, options=options)
        except FileNotFoundError:
            if ref in needed:
                raise
    return evaluators


def _with_networks(rows: Sequence[Planned]) -> Iterator[tuple[Planned, Job]]:
    """Each row with its job; consecutive rows of the same networks share them."""
    for _, group in groupby(rows, key=lambda one: networks_of(one.options)[:2]):
        job = None
        for one in group:
            job = open_job(one.options) if job is None else _same_networks(job, one.options)
            yield one, job


def _same_networks(job: Job, options: dict[str, Any]) -> Job:
    """The job of other settings with the same networks, seeds and labels."""
    plan = plan_job(options)
    return dataclasses.replace(job, settings=plan.settings, identity=plan.identity)


def _make(
    job: Job, evaluator: Evaluator, world: World, shard: tuple[int, int] | None
) -> dict[str, Any] | None:
    """The numbers of one row; None in all processes but the first, and for a shard."""
    start, made, n = time.perf_counter(), [0], len(job.seeds)
    chunks: Any = functools.partial(_counted, image_chunks(job), made)
    if shard is not None:
        evaluator.extract_shard(chunks, world, n, shard)
        return None
    real = evaluator.extract_real(world)
    features = evaluator.extract(chunks, world, n)
    counts = gather(world, made[0])
    if features is None:
        return None
    evaluation = evaluator.evaluate(features, real)
    nfe = {name: features.metadata[name].mean().item() for name in ("nfe", "guide_nfe")}
    facts = {name: job.metadata[name] for name in ("seeds", "batch", "network", "guide")}
    names = ("command", "commit", "device", "versions")
    spent = {"seconds": time.perf_counter() - start, "images": sum(counts), "processes": world.size}
    return (
        {"settings": plain(job.identity), **facts, **nfe, **evaluation.to_dict()}
        | {"notes": evaluation.undefined, "made_by": {name: job.metadata[name] for name in names}}
        | {"spent": spent}
    )


def _counted(share: Any, made: list[int], rank: int, size: int) -> Iterator[ImageChunk]:
    """A process's pieces; ``made`` counts the images of those that are sampled."""

    def read(piece: ImageChunk) -> Any:
        made[0] += piece.size
        return piece.read()

    for piece in share(rank, size):
        yield piece._replace(read=functools.partial(read, piece))


def _place(one: Planned, evaluator: Evaluator, request: Request) -> Path:
    """The file of a row. Raises FileNotFoundError if its networks are not on this disk."""
    plan = plan_job(one.options)
    told = [
        image_identity(plan.identity),
        [None if name is None else _digest(name) for name in (plan.net, plan.gnet)],
        one.options["seeds"], one.options["batch"], one.ref,
        evaluator.reference and evaluator.reference.sha256,
        evaluator.real and fingerprint(evaluator.real), evaluator.options.groups,
        {name: extractor.sha256 for name, extractor in evaluator.plan.extractors.items()},
        computation(),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
    return request.rows_folder / f"{key}.json"


@functools.cache
def _digest(address: str) -> str:
    return sha256_of(fetch_checkpoint(address, offline=True))


def _found(one: Planned, evaluators: Mapping[str, Evaluator], request: Request) -> Found:
    """What the file of a row says; {}: it is still to be made."""
    if one.ref not in evaluators:
        return {}
    try:
        place = _place(one, evaluators[one.ref], request)
        found: Found = json.loads(place.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found

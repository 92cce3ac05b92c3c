"""Rows of a table: sampled and measured, all with the same seeds and the same evaluator.

A finished row is an entry of `erk.io.cache`, keyed by its settings and by the content of its
networks and its reference; the features of every batch are cached too. So a killed run goes on
where it stopped, and tables with equal rows share them.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any, NamedTuple

import click
import torch

from erk.generation.job import Job, computation, image_identity, plain
from erk.generation.options import plan_job
from erk.generation.stream import ImageChunk, image_chunks
from erk.io.cache import cached, find
from erk.io.files import sha256_of
from erk.models.model import fetch_checkpoint
from erk.runtime.distributed import World, broadcast, gather, join, pick_device
from metrics import evaluation, store
from metrics.evaluation import Evaluation, paired_differences
from metrics.evaluator import Evaluator, Options, load_evaluator
from metrics.images import fingerprint
from metrics.protocols import find_protocol
from scripts.paper.config import Measured, Request, Row, chosen_rows
from scripts.paper.plan import options_of_row, ref_of

VERSION = 1
"""Version of the measurement of a row: raise it when its numbers change for the same images."""
PROVENANCE = ("command", "commit", "device", "versions")

Finished = Mapping[str, Any]
"""The numbers of a row, flat; {}: not measured yet."""


class Planned(NamedTuple):
    """A row to be sampled and measured."""

    row: Row
    options: dict[str, Any]  # of ``erk generate``
    ref: str


def measure_rows(
    config: Measured, request: Request, each: Callable[[Sequence[Finished]], Any] | None = None
) -> list[Finished] | None:
    """Measure the chosen rows that are missing and return all rows of the config, in order.

    Parameters
    ----------
    config, request : the table, and what the command line asks for.
    each : called with all rows after every row that was measured.

    Returns
    -------
    One mapping per row, {} where it is missing. None in all processes but the first, and for a
    shard, which computes features only.

    Raises
    ------
    ValueError or OSError with one sentence.
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
        missing = [one for one in todo if not _find(one, evaluators, request)]
        missing = broadcast(world, missing)
        for number, (one, job) in enumerate(_with_networks(missing), 1):
            numbers = _measure(job, evaluators[one.ref], world, request.shard)
            if world.rank == 0:
                click.echo(f"{config.name} [{number}/{len(missing)}] {one.row.name}", err=True)
            if numbers is not None:
                key = key_of(one, evaluators[one.ref])
                cached(key, VERSION, functools.partial(dict, numbers), request.rows_folder)
                if each is not None:
                    each([_find(other, evaluators, request) for other in planned])
        if world.rank > 0:
            return None
    if request.shard is not None:
        index, count = request.shard
        click.echo(f"{config.name}: the features of shard {index} of {count} are computed; run "
                   "without --shard when all are")  # fmt: skip
        return None
    return [_find(one, evaluators, request) for one in planned]


def paired(a: Finished, b: Finished) -> dict[str, dict[str, Any]]:
    """Return a - b of each column, on the same seeds: value, error, and whether 0 is excluded."""
    return {
        name: one._asdict()
        for name, one in paired_differences(_evaluation(a), _evaluation(b)).items()
    }


def key_of(one: Planned, evaluator: Evaluator) -> list[Any]:
    """Return all that the numbers of a row depend on.

    Raises FileNotFoundError if its networks are not on this disk.
    """
    plan = plan_job(one.options)
    return [
        image_identity(plan.identity),
        [None if name is None else _network_sha256(name) for name in (plan.net, plan.gnet)],
        one.options["seeds"],
        one.options["batch"],
        one.ref,
        evaluator.reference and evaluator.reference.sha256,
        evaluator.real and fingerprint(evaluator.real),
        evaluator.options.groups,
        [asdict(measure) for measure in evaluator.protocol.measures],
        {name: extractor.sha256 for name, extractor in evaluator.plan.extractors.items()},
        [*computation(), store.VERSION, evaluation.VERSION],
    ]


@functools.cache
def _network_sha256(address: str) -> str:
    return sha256_of(fetch_checkpoint(address, offline=True))


def _find(one: Planned, evaluators: Mapping[str, Evaluator], request: Request) -> Finished:
    """Return the numbers of a row; {} where it is missing."""
    if one.ref not in evaluators:
        return {}
    try:
        row: Finished = find(key_of(one, evaluators[one.ref]), VERSION, request.rows_folder)
    except FileNotFoundError:
        return {}
    return row


def _evaluators(
    planned: Sequence[Planned], todo: Sequence[Planned], request: Request, device: torch.device
) -> dict[str, Evaluator]:
    """Load an evaluator per reference; one that only other rows need may lack its files."""
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
    """Pair each row with its job; consecutive rows of the same networks share them."""
    plans = [(one, plan_job(one.options)) for one in rows]
    for _, group in groupby(plans, key=lambda pair: (pair[1].net, pair[1].gnet)):
        job = None
        for one, plan in group:
            job = plan.load() if job is None else plan.with_networks(job.model, job.guide)
            yield one, job


def _measure(
    job: Job, evaluator: Evaluator, world: World, shard: tuple[int, int] | None
) -> dict[str, Any] | None:
    """Return the numbers of one row; None in all processes but the first, and for a shard."""
    start, n = time.perf_counter(), len(job.seeds)
    chunks = _Counted(image_chunks(job))
    if shard is not None:
        evaluator.extract_shard(chunks, world, n, shard)
        return None
    real = evaluator.extract_real(world)
    features = evaluator.extract(chunks, world, n)
    sampled = sum(gather(world, chunks.images))
    if features is None:
        return None
    result = evaluator.evaluate(features, real, in_seed_order=True)
    nfe = {name: features.metadata[name].mean().item() for name in ("nfe", "guide_nfe")}
    seconds = time.perf_counter() - start
    return {
        "settings": plain(job.identity),
        **{name: job.metadata[name] for name in ("seeds", "batch", "network", "guide")},
        **nfe,
        **result.to_dict(),
        "notes": result.undefined,
        "made_by": {name: job.metadata[name] for name in PROVENANCE},
        "spent": {"seconds": seconds, "images": sampled, "processes": world.size},
    }


class _Counted:
    """The chunks of a job; ``images`` counts those that this process has sampled."""

    def __init__(self, chunks: Callable[[int, int], Iterator[ImageChunk]]):
        self.chunks = chunks
        self.images = 0

    def __call__(self, rank: int, size: int) -> Iterator[Any]:
        for chunk in self.chunks(rank, size):
            yield chunk._replace(read=functools.partial(self._read, chunk))

    def _read(self, chunk: ImageChunk) -> Any:
        self.images += chunk.size
        return chunk.read()


def _evaluation(row: Finished) -> Evaluation:
    values = {name: row.get(name) for name in find_protocol(row["protocol"]).columns}
    return Evaluation(row["protocol"], row["n"], values, row["replicates"])

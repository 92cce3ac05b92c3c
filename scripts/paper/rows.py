"""Rows of a table: sampled and measured, all with the same seeds and the same evaluator.

A finished row is keyed by its settings and by the content of its networks and its reference; the
features of every batch are cached too. So a killed run goes on where it stopped, and tables with
equal rows share them.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import torch

from erk.generation.job import Job, computation, image_identity, plain
from erk.generation.options import plan_job
from erk.generation.stream import ImageChunk, image_chunks
from erk.io.cache import cached, digest, find
from erk.io.files import sha256_of
from erk.models.model import fetch_checkpoint
from erk.runtime.distributed import World, broadcast, gather, join, pick_device
from metrics import evaluation as evaluating
from metrics import store
from metrics.evaluation import Evaluation, paired_differences
from metrics.evaluator import Evaluator, load_evaluator
from metrics.images import fingerprint
from metrics.options import Options
from metrics.protocols import find_protocol
from scripts.paper import distance
from scripts.paper.cards import make_card
from scripts.paper.config import Experiment, Measured, Request, Row, chosen_rows, page_name
from scripts.paper.plan import options_of_row, ref_of

VERSION = 2
"""Version of the measurement of a row: raise it when its numbers change for the same images."""
PROVENANCE = ("command", "commit", "device", "versions")

Finished = Mapping[str, Any]
"""The numbers of a row, flat; {}: not measured yet."""


class Planned(NamedTuple):
    """A row to be sampled and measured."""

    row: Row
    options: dict[str, Any]  # of ``erk generate``
    ref: str
    has_distance: bool = True  # see scripts.paper.distance
    table: str = ""  # name of its experiment
    page: str = ""  # and of its page


def planned_rows(config: Measured, request: Request) -> list[Planned]:
    """Return all rows of a table. Raises ValueError."""
    page = page_name(config, request)
    options = compiled_alike([options_of_row(config, row, request) for row in config.rows])
    return [
        Planned(row, some, ref_of(config, row), request.is_small, config.name, page)
        for row, some in zip(config.rows, options, strict=True)
    ]


def compiled_alike(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compile the networks of all rows with --compile auto, if that pays for one of them.

    Compiled networks round otherwise, and this must not look like a difference between rows. The
    choice is part of a row's settings, "fp16 on cuda, compiled", and so of its key: rows measured
    under the other choice are measured again, never mixed with these.
    """
    auto = [row for row in rows if row["compile"] == "auto"]
    if not auto or pick_device(auto[0]["device"]).type != "cuda":
        return list(rows)
    choice = "always" if any(map(_is_compiled, auto)) else "never"
    return [row | {"compile": choice} if row in auto else row for row in rows]


def _is_compiled(row: dict[str, Any]) -> bool:
    """Return whether a row alone would be sampled with compiled networks."""
    with contextlib.suppress(FileNotFoundError):  # such a row is not measured
        return plan_job(row).compiled
    return False


class Rows:
    """The rows of all experiments of a call: what is finished, and what is to be measured.

    Finished rows are entries of `erk.io.cache` in ``request.rows_folder``, or part of the pages
    beside that folder, which are committed: a fresh clone goes on from there.

    Raises
    ------
    ValueError or OSError with one sentence.
    """

    def __init__(self, experiments: Sequence[Experiment]):
        self.experiments = experiments
        self.planned = [planned_rows(*one) for one in experiments]
        chosen = [chosen_rows(config, request.rows) for config, request in experiments]
        self.todo = [one for rows, some in zip(self.planned, chosen, strict=True)
                     for one in rows if one.row in some]  # fmt: skip
        self.request = experiments[0].request
        self.device = pick_device(self.todo[0].options["device"])
        self.evaluators = _evaluators(
            [one for rows in self.planned for one in rows], self.todo, self.request, self.device
        )
        self.kept = kept_rows(self.request.rows_folder.parent)
        self.entries: dict[str, tuple[list[Any], str]] = {}

    def find(self, one: Planned) -> Finished:
        """Return the numbers of a row; {} where it is missing."""
        entry = self.entry(one)
        if entry is None:
            return {}
        key, name = entry
        try:
            row: Finished = find(key, VERSION, self.request.rows_folder)
        except FileNotFoundError:
            row = self.kept.get(name, {})
        return {**row, "key": name} if row else {}

    def entry(self, one: Planned) -> tuple[list[Any], str] | None:
        """Return the key of a row and its digest; None where a file that it needs is missing."""
        options = json.dumps([one.options, one.ref], sort_keys=True)
        if options not in self.entries and one.ref in self.evaluators:
            with contextlib.suppress(FileNotFoundError):
                key = key_of(one, self.evaluators[one.ref])
                self.entries[options] = key, digest(key, VERSION)
        return self.entries.get(options)

    def finished(self, index: int) -> list[Finished]:
        """Return the rows of an experiment, in order."""
        return [self.find(one) for one in self.planned[index]]

    def missing(self) -> list[Planned]:
        """Return the chosen rows that are not finished; of equal ones the first."""
        rows: dict[str, Planned] = {}
        for one in self.todo:
            if not self.find(one):
                rows.setdefault(str((self.entry(one) or [one])[-1]), one)
        return list(rows.values())

    def measure(
        self, budget: "Limit | None" = None, each: Callable[[int], Any] = lambda index: None
    ) -> bool:
        """Measure the chosen rows that are missing.

        Parameters
        ----------
        budget
            Orders the rows and may leave some; see scripts.paper.budget.
        each
            Called with the index of every experiment that a measured row belongs to.

        Returns
        -------
        bool
            Whether this process has the results: the first one, and not of a shard, which computes
            features only.
        """
        shard = self.request.shard
        with join(self.device) as world:
            missing = self.missing()
            missing = broadcast(world, budget.ordered(missing) if budget else missing)
            networks = _Networks()
            for number, one in enumerate(missing, 1):
                if not broadcast(world, budget is None or budget.allows(one)):
                    continue
                start = time.perf_counter()
                if world.rank == 0:
                    make_card(one.row, one.options)
                broadcast(world, None)  # the card is there
                evaluator = self.evaluators[one.ref]
                numbers = _measure(networks.job(one), evaluator, world, shard, one.has_distance)
                if world.rank == 0:
                    click.echo(f"{one.page} [{number}/{len(missing)}] {one.row.name}", err=True)
                if numbers is not None:
                    self._keep(one, numbers, each)
                if budget is not None:
                    budget.took(one, time.perf_counter() - start)
            return world.rank == 0 and shard is None

    def _keep(self, one: Planned, numbers: Finished, each: Callable[[int], Any]) -> None:
        entry = self.entry(one)
        assert entry is not None
        cached(entry[0], VERSION, functools.partial(dict, numbers), self.request.rows_folder)
        for index, rows in enumerate(self.planned):
            if any(self.entry(other) == entry for other in rows):
                each(index)


class Limit(Protocol):
    """What decides which rows come first, and which are left; see scripts.paper.budget."""

    def ordered(self, rows: Sequence[Planned]) -> list[Planned]:
        """Return the rows in the order in which they are measured."""

    def allows(self, one: Planned) -> bool:
        """Return whether to measure a row."""

    def took(self, one: Planned, seconds: float) -> None:
        """Learn what a row took."""


def kept_rows(folder: Path) -> dict[str, Finished]:
    """Return the rows that the pages of a folder hold, by the digest of their key."""
    rows: dict[str, Finished] = {}
    for path in folder.glob("*.json"):
        try:
            finished = json.loads(path.read_bytes()).get("finished", {})
        except (ValueError, AttributeError):  # not a page
            continue
        rows |= {one["key"]: one for one in finished.values()}
    return rows


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
        distance.identity() if one.has_distance else None,
        evaluator.reference and evaluator.reference.sha256,
        evaluator.real and fingerprint(evaluator.real),
        evaluator.options.groups,
        [asdict(measure) for measure in evaluator.protocol.measures],
        {name: extractor.sha256 for name, extractor in evaluator.plan.extractors.items()},
        [*computation(), store.VERSION, evaluating.VERSION],
    ]


@functools.cache
def _network_sha256(address: str) -> str:
    return sha256_of(fetch_checkpoint(address, offline=True))


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


class _Networks:
    """The networks of the row before, which the next one may share."""

    names: Any = None
    last: Job

    def job(self, one: Planned) -> Job:
        plan = plan_job(one.options)
        names = plan.net, plan.gnet, plan.compiled
        if self.names == names:
            self.last = plan.with_networks(self.last.model, self.last.guide)
        else:
            self.last = plan.load()
        self.names = names
        return self.last


def _measure(
    job: Job, evaluator: Evaluator, world: World, shard: tuple[int, int] | None, has_distance: bool
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
    away = distance.measure(job, world) if has_distance else {}
    if features is None:
        return None
    evaluation = evaluator.evaluate(features, real, in_seed_order=True)
    undefined, result = evaluation.undefined, evaluation.to_dict()
    nfe = {name: features.metadata[name].mean().item() for name in ("nfe", "guide_nfe")}
    seconds = time.perf_counter() - start
    return {
        "settings": plain(job.identity),
        **{name: job.metadata[name] for name in ("seeds", "batch", "network", "guide")},
        **nfe,
        **result,
        **{name: value for name, value in away.items() if name != "replicates"},
        "replicates": result["replicates"] | ({"distance": away["replicates"]} if away else {}),
        "notes": undefined,
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
    values |= {"distance": row["distance"]} if "distance" in row else {}
    return Evaluation(row["protocol"], row["n"], values, row["replicates"])

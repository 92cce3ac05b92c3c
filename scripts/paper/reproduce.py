"""Tables and figures of the paper: python -m scripts.paper.reproduce table2

Computes what is missing, writes results/NAME.json, .csv, .md, .tex and .html, and updates
results/index.html, the page of all of them. On the scales digits (the default), digits-early and
mnist small networks represent the paper's, on the CPU, in minutes.
"""

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from erk.commands.cli import CONTEXT, FiniteFloat, clean_exit
from erk.runtime.distributed import pick_device
from erk.runtime.shards import shard_of
from scripts.paper import tables
from scripts.paper.budget import Budget
from scripts.paper.budget import costs as costs_of
from scripts.paper.config import (
    ROOT,
    AnyConfig,
    Cost,
    Estimator,
    Experiment,
    Grid,
    Request,
    Sampled,
    SettingsTable,
    Sweep,
    TextToImage,
    Toy,
    chosen_rows,
    config_names,
    images_of,
    load_config,
    page_name,
)
from scripts.paper.index import write_index
from scripts.paper.page import to_md
from scripts.paper.plan import describe, fetch_files, files_of
from scripts.paper.rows import Rows
from scripts.paper.scales import NoNetworkError, at_scale, differs_as_printed, scales_of

WRITE: dict[type, str] = {Sampled: "tables.write", Sweep: "figures.write_sweep"}
"""Kinds whose rows are sampled and measured, which several processes share -> their pages."""
RUN: dict[type, str] = {
    SettingsTable: "settings.run",
    Toy: "toy.run",
    Cost: "costs.run",
    Estimator: "estimator.run",
    Grid: "figures.run_grid",
    TextToImage: "text_to_image.run",
}
"""The other kinds -> their computation by one process."""
ALL = "all"
OFTEN = 10  # seconds between two versions of a page while its rows are measured
MAX_PROCESSES = 8  # that "auto" starts on a CPU: a row has no more batches
WITH_ROWS = (*WRITE, Grid, TextToImage)  # rows can be chosen
WITHOUT_FILES = (Toy, SettingsTable)
EXPECTED = (ValueError, OSError, MemoryError, FloatingPointError, click.ClickException)


def _function(path: str) -> Any:
    """Return a function of scripts.paper; all of them together load for seconds."""
    module, name = path.split(".")
    return getattr(importlib.import_module(f"scripts.paper.{module}"), name)


@click.command(context_settings=CONTEXT)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--scale", default="digits", metavar="NAMES",
              help="digits, digits-early or mnist, or several with commas between them; paper: the "
              "paper's networks and numbers of images, on a GPU.")  # fmt: skip
@click.option("--num", type=int, metavar="N", help="Images per row.  [default: the config's]")
@click.option("--rows", metavar="LIST", help="Compute only these rows, counted from 0: 0,2-4.")
@click.option("--as-printed", is_flag=True, help="Use the settings of the paper's text where its "
              "published script has others.")  # fmt: skip
@click.option("--budget", type=FiniteFloat(min=0), metavar="HOURS",
              help="Measure the most valuable rows first, and start none that would not end within "
              "these hours.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print rows, evaluations, time and files.")
@click.option("--fetch", "fetch_only", is_flag=True, help="Only download the files.")
@click.option("--results", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of the results.  "
              "[default: results; with --num or --rows results/trial]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Device to compute on; auto: the CPU unless the scale is paper.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Images per network call.")
@click.option("--real", metavar="PATH", help="Real images, for precision and recall.")
@click.option(
    "--cache", metavar="DIR", help="Folder of extracted features.  [default: in ERK_CACHE]"
)
@click.option("--shard", metavar="I/N", help="Compute only the features of every N-th batch, from "
              "I = 0; later run without it.  [default: that of a SLURM array]")  # fmt: skip
@click.option("--processes", metavar="N|auto", default="1",
              help="auto: one per GPU, or per core of the CPU, up to 8.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@clean_exit
def main(names: Sequence[str], **options: Any) -> None:
    """Reproduce tables and figures of the paper, NAME: table2, figure3, ... or all.

    Finished rows are not computed again; after an interruption the same command continues.
    """
    fetch_only, processes, hours = map(options.pop, ("fetch_only", "processes", "budget"))
    experiments = _experiments(names, options)
    count = process_count(processes, experiments)
    request = experiments[0].request
    calls = Calls(len(experiments) > 1)
    if request.dry_run:
        return _describe(experiments)
    for one in experiments:
        calls.run(one, _fetch, *one, fetch_only)
    if not fetch_only:
        if count > 1 and "WORLD_SIZE" not in os.environ:
            _spread(count)
        paths = _compute([one for one in experiments if one not in calls.failed], hours, calls)
        for path in [*paths, write_index(request.results)] if paths else []:
            click.echo(f"wrote {path}")
    calls.end()


class Calls:
    """What is called per experiment; of several the failure of one does not stop the others."""

    def __init__(self, are_several: bool):
        self.are_several = are_several
        self.failed: list[Experiment] = []

    def run(self, one: Experiment, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function for an experiment and return its result; None if it failed."""
        if not self.are_several:
            return function(*arguments)
        try:
            return function(*arguments)
        except EXPECTED as error:
            click.echo(f"{page_name(*one)}: {error}", err=True)
            self.failed.append(one)

    def end(self) -> None:
        """End the command with 1 and the names of what failed, if anything did."""
        if self.failed:
            click.echo(f"failed: {' '.join(page_name(*one) for one in self.failed)}", err=True)
            sys.exit(1)


def _experiments(names: Sequence[str], options: dict[str, Any]) -> list[Experiment]:
    """Check the options before anything is loaded or started. Raises ValueError, OSError."""
    names = config_names() if ALL in names else list(dict.fromkeys(names))
    scales = scales_of(options.pop("scale"))
    if options["rows"] is not None and len(names) * len(scales) > 1:
        raise ValueError("--rows chooses rows of one table on one scale: name only one")
    seen: dict[str, Experiment] = {}
    for scale in scales:
        for config in map(load_config, names):
            request = _request(config, options | {"scale": scale})
            try:
                one = Experiment(at_scale(config, request), request)
            except NoNetworkError as error:
                if len(names) * len(scales) == 1:
                    raise
                click.echo(f"left out: {error}", err=True)
                continue
            _check_rows(*one)
            seen.setdefault(page_name(*one), one)
    if not seen:
        raise NoNetworkError(f"nothing is left on the scales {', '.join(scales)}")
    return list(seen.values())


def _request(config: AnyConfig, options: dict[str, Any]) -> Request:
    if options["rows"] is not None and not isinstance(config, WITH_ROWS):
        raise ValueError(f"the rows of {config.name} are computed together: leave out --rows")
    if options["shard"] is not None and not isinstance(config, tuple(WRITE)):
        raise ValueError(f"{config.name} has no shards: leave out --shard")
    if options["real"] is not None and not Path(options["real"]).exists():
        raise FileNotFoundError(f"--real {options['real']} does not exist")
    results = options["results"]
    if results is None:  # a trial must not replace complete results
        complete = ROOT / "results"
        is_trial = options["num"] is not None or options["rows"] is not None
        results, rows_in = complete / "trial" if is_trial else complete, complete / "rows"
        options = options | {"results": results, "rows_in": rows_in}
    if results.exists() and not results.is_dir():
        raise NotADirectoryError(f"--results {results} is a file: give a folder")
    request = Request(**options | {"shard": shard_of(options["shard"])})
    if request.as_printed and not differs_as_printed(config, request):
        click.echo(f"{config.name}: --as-printed changes nothing here", err=True)
        request = request._replace(as_printed=False)
    return request


def _check_rows(config: AnyConfig, request: Request) -> None:
    for row in chosen_rows(config, request.rows):
        if config.num is not None or request.num is not None:
            images_of(config, row, request)


def process_count(text: str, experiments: Sequence[Experiment]) -> int:
    """Return the number of processes to start. Raises ValueError."""
    request = experiments[0].request
    are_shared = any(isinstance(one.config, tuple(WRITE)) for one in experiments)
    if text != "auto":
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"--processes must be a number from 1 on, or auto, not '{text}'")
        return int(text) if are_shared else 1
    if not are_shared:
        return 1
    on_gpu = not request.is_small or request.device != "auto"
    if on_gpu and pick_device(request.device).type == "cuda":
        return torch.cuda.device_count()
    return min(os.cpu_count() or 1, MAX_PROCESSES)


def _describe(experiments: Sequence[Experiment]) -> None:
    """Print what would be computed: the rows of one experiment, the costs of several."""
    if len(experiments) == 1:
        (one,) = experiments
        kind = type(one.config)
        click.echo(describe(*one)) if kind in WRITE else _function(RUN[kind])(*one)
        return
    shared = [one for one in experiments if isinstance(one.config, tuple(WRITE))]
    if shared:
        click.echo(costs_of(shared))
    others = [page_name(*one) for one in experiments if one not in shared]
    if others:
        click.echo(f"Then, one after the other by one process, in minutes: {', '.join(others)}.")


def _compute(experiments: Sequence[Experiment], hours: float | None, calls: Calls) -> list[Path]:
    """Compute what is missing of all experiments, write their pages and return the paths."""
    shared = [one for one in experiments if isinstance(one.config, tuple(WRITE))]
    paths = _measure(shared, hours, calls.are_several) if shared else []
    shard = experiments[0].request.shard if experiments else None
    if int(os.environ.get("RANK", "0")) or (shard or (0, 1))[0]:
        return []  # the first process, or task of an array, does the rest alone
    for one in experiments:
        if one not in shared:
            paths += calls.run(one, _function(RUN[type(one.config)]), *one) or []
    return paths


def _measure(
    experiments: Sequence[Experiment], hours: float | None, are_several: bool
) -> list[Path]:
    """Measure the missing rows and write their pages, now and then and in the end."""
    rows = Rows(experiments)
    budget = None
    if are_several or hours is not None:
        budget = Budget(hours, int(os.environ.get("WORLD_SIZE", "1")))

    written = dict.fromkeys(range(len(experiments)), -math.inf)

    def write(index: int) -> list[Path]:
        config, request = experiments[index]
        write_page = _function(WRITE[type(config)])
        paths: list[Path] = write_page(config, request, rows.finished(index))
        written[index] = time.monotonic()
        return paths

    def update(index: int) -> None:
        if time.monotonic() - written[index] > OFTEN:
            write(index)

    if not rows.measure(budget, update):
        shard = experiments[0].request.shard
        if shard is not None and os.environ.get("RANK", "0") == "0":
            click.echo(f"the features of shard {shard[0]} of {shard[1]} are computed; run without "
                       "--shard when all are")  # fmt: skip
        return []
    paths = [path for index in range(len(experiments)) for path in write(index)]
    if not are_several:
        config, request = experiments[0]
        click.echo(to_md(tables.page_of(config, request, rows.finished(0))))
    if budget is not None and budget.left:
        click.echo(budget.report(), err=True)
    return paths


def _fetch(config: AnyConfig, request: Request, fetch_only: bool) -> None:
    """Download all files that are missing before anything is loaded."""
    if request.is_small or isinstance(config, WITHOUT_FILES):
        if fetch_only:
            click.echo(f"{config.name}: needs no download")
        return
    if isinstance(config, TextToImage):  # the cache is that of another package
        if fetch_only:
            _function("text_to_image.fetch_weights")(config, request.offline)
        return
    command = ["bash scripts/reproduce.sh", config.name, "--scale", request.scale]
    command += ["--rows", request.rows] if request.rows else []
    command += ["--real", request.real] if request.real else []
    files = files_of(config, request)
    fetch_files(files, request.offline, " ".join([*command, "--fetch"]))
    if fetch_only:
        click.echo(f"{config.name}: all {len(files)} files are in the cache")


def _spread(count: int) -> None:
    """Replace this process with several that run the same command; does not return."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    module = ["--module", "--", "scripts.paper.reproduce", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, *launch, *module])


if __name__ == "__main__":
    main()

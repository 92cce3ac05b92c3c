"""One table or figure of the paper: python -m scripts.paper.reproduce table2

Computes what is missing, writes results/NAME.json, .csv, .md, .tex and .html, and updates
results/index.html, the page of all of them. At embedded scale (the default) small networks of
digits represent the paper's, on the CPU, in minutes.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.runtime.distributed import pick_device
from erk.runtime.shards import shard_of
from scripts.paper import costs, estimator, figures, settings, tables, text_to_image, toy
from scripts.paper.config import (
    ROOT,
    SCALES,
    AnyConfig,
    Cost,
    Estimator,
    Grid,
    Request,
    Sampled,
    SettingsTable,
    Sweep,
    TextToImage,
    Toy,
    chosen_rows,
    differs_as_printed,
    images_of,
    load_config,
)
from scripts.paper.index import write_index
from scripts.paper.plan import fetch_files, files_of

RUN: dict[type, Any] = {
    Sampled: tables.run,
    SettingsTable: settings.run,
    Toy: toy.run,
    Cost: costs.run,
    Estimator: estimator.run,
    Sweep: figures.run_sweep,
    Grid: figures.run_grid,
    TextToImage: text_to_image.run,
}
MAX_PROCESSES = 8  # that "auto" starts on a CPU: a row has no more batches
SHARED = (Sampled, Sweep)  # several processes share the work
WITH_ROWS = (*SHARED, Grid, TextToImage)  # rows can be chosen
WITHOUT_FILES = (Toy, SettingsTable)


@click.command(context_settings=CONTEXT)
@click.argument("name")
@click.option("--scale", type=click.Choice(SCALES), default="embedded",
              help="paper: the paper's networks and numbers of images, on a GPU.")  # fmt: skip
@click.option("--num", type=int, metavar="N", help="Images per row.  [default: the config's]")
@click.option("--rows", metavar="LIST", help="Compute only these rows, counted from 0: 0,2-4.")
@click.option("--as-printed", is_flag=True, help="The settings of the paper's text where its "
              "published script has others.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print rows, evaluations, time and files.")
@click.option("--fetch", "fetch_only", is_flag=True, help="Only download the files.")
@click.option("--results", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of the results.  "
              "[default: results; with --num or --rows results/trial]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Where to compute; auto: the CPU at embedded scale.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Images at a time.")
@click.option("--real", metavar="PATH", help="Real images, for precision and recall.")
@click.option("--cache", metavar="DIR", help="Folder of features.  [default: in ERK_CACHE]")
@click.option("--shard", metavar="I/N", help="Compute only the features of every N-th batch, from "
              "I = 0; later run without it.  [default: that of a SLURM array]")  # fmt: skip
@click.option("--processes", metavar="N|auto", default="1",
              help="auto: one per GPU, or per core of the CPU, up to 8.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@clean_exit
def main(name: str, **options: Any) -> None:
    """Reproduce a table or a figure of the paper, NAME: table2, figure3, ...

    Finished rows are not computed again; after an interruption the same command continues.
    """
    fetch_only, processes = options.pop("fetch_only"), options.pop("processes")
    config = load_config(name)
    request = _request(config, options)
    count = process_count(processes, config, request)
    is_first = int(os.environ.get("RANK", "0")) == (request.shard or (0, 1))[0] == 0
    if not isinstance(config, SHARED) and not is_first:
        return  # the first process, or task of an array, does all the work
    if not request.dry_run:
        _fetch(config, request, fetch_only)
        if fetch_only:
            return
        if count > 1 and "WORLD_SIZE" not in os.environ:
            _spread(count)
    paths = RUN[type(config)](config, request)
    for path in [*paths, write_index(request.results)] if paths else []:
        click.echo(f"wrote {path}")


def _request(config: AnyConfig, options: dict[str, Any]) -> Request:
    """Check the options before anything is loaded or started. Raises ValueError, OSError."""
    chosen, shard = options["rows"], shard_of(options["shard"])
    if chosen is not None and not isinstance(config, WITH_ROWS):
        raise ValueError(f"the rows of {config.name} are computed together: leave out --rows")
    chosen_rows(config, chosen)
    if options["shard"] is not None and not isinstance(config, SHARED):
        raise ValueError(f"{config.name} has no shards: leave out --shard")
    if options["real"] is not None and not Path(options["real"]).exists():
        raise FileNotFoundError(f"--real {options['real']} does not exist")
    if options["as_printed"] and not differs_as_printed(config, options["scale"]):
        click.echo(f"{config.name}: --as-printed changes nothing here", err=True)
        options["as_printed"] = False
    results = options["results"]
    if results is None:  # a trial must not replace complete results
        complete = ROOT / "results"
        is_trial = options["num"] is not None or chosen is not None
        results = complete / "trial" if is_trial else complete
        options["rows_in"] = complete / "rows"
    if results.exists() and not results.is_dir():
        raise NotADirectoryError(f"--results {results} is a file: give a folder")
    request = Request(**options | {"shard": shard, "results": results})
    images_of(config, request)
    return request


def process_count(text: str, config: AnyConfig, request: Request) -> int:
    """Return the number of processes to start. Raises ValueError."""
    if text != "auto":
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"--processes must be a number from 1 on, or auto, not '{text}'")
        return int(text) if isinstance(config, SHARED) else 1
    if not isinstance(config, SHARED):
        return 1
    on_gpu = request.scale == "paper" or request.device != "auto"
    if on_gpu and pick_device(request.device).type == "cuda":
        return torch.cuda.device_count()
    return min(os.cpu_count() or 1, MAX_PROCESSES)


def _fetch(config: AnyConfig, request: Request, fetch_only: bool) -> None:
    """Download all files that are missing before anything is loaded."""
    if request.scale == "embedded" or isinstance(config, WITHOUT_FILES):
        if fetch_only:
            click.echo(f"{config.name}: needs no download")
        return
    if isinstance(config, TextToImage):  # the cache is that of another package
        if fetch_only:
            text_to_image.fetch_weights(config, request.offline)
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

"""One table or figure of the paper: python -m scripts.paper.reproduce table2

Makes what is not there yet and writes results/NAME.csv, .md, .tex, .html and .json, and renews
results/index.html, the page of all of them. At embedded scale (the default) small networks of
digits stand for the paper's, on the CPU, in minutes.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from erk.commands.cli import CONTEXT, clean_exit
from erk.runtime.shards import shard_of
from scripts.paper.config import (
    ROOT,
    SCALES,
    Config,
    Request,
    chosen_rows,
    differs_as_printed,
    images_of,
    load_config,
)
from scripts.paper.index import write_index

HANDLERS = {
    "sampled": "scripts.paper.sampled",
    "settings": "scripts.paper.settings",
    "toy": "scripts.paper.toy_tables",
    "timing": "scripts.paper.timing",
    "estimator": "scripts.paper.estimator",
    "sweep": "scripts.paper.sweeps",
    "grid": "scripts.paper.grids",
    "text-to-image": "scripts.paper.text_to_image",
}
MOST = 8  # processes that "auto" starts on a CPU: a row has no more batches
SHARED = ("sampled", "sweep")  # kinds whose work several processes share
WITH_ROWS = (*SHARED, "grid", "text-to-image")  # kinds whose rows can be chosen
WITHOUT_FILES = ("toy", "settings")


@click.command(context_settings=CONTEXT)
@click.argument("name")
@click.option("--scale", type=click.Choice(SCALES), default="embedded",
              help="paper: the paper's networks and numbers of images, on a GPU.")  # fmt: skip
@click.option("--num", type=int, metavar="N", help="Images per row.  [default: the config's]")
@click.option("--rows", metavar="LIST", help="Make these rows only, from 0 on: 0,2-4.")
@click.option("--as-printed", is_flag=True, help="The settings of the paper's text where its "
              "published script has others.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print rows, evaluations, time and wanted files.")
@click.option("--fetch", "fetch_only", is_flag=True, help="Only download what is wanted.")
@click.option("--results", type=click.Path(path_type=Path), metavar="DIR", help="Where files go.  "
              "[default: results; with --num or --rows results/trial]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Where to compute; auto: the CPU at embedded scale.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Images at a time.")
@click.option("--real", metavar="PATH", help="Real images, for precision and recall.")
@click.option("--cache", metavar="DIR", help="Where features are kept.  [default: in ERK_CACHE]")
@click.option("--shard", metavar="I/N", help="Make the features of every N-th batch only, from "
              "I = 0 on; later run without it.  [default: that of a SLURM array]")  # fmt: skip
@click.option("--processes", metavar="N|auto", default="1",
              help="auto: one per GPU, or per core of the CPU, up to 8.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@clean_exit
def main(name: str, **options: Any) -> None:
    """Make a table or a figure of the paper, NAME: table2, fig3, ...

    Rows that are there are not made again; after an interruption the same command goes on.
    """
    fetch_only, processes = options.pop("fetch_only"), options.pop("processes")
    config = load_config(name)
    request = _request(config, options)
    count = count_of(processes, config, request)
    is_first = int(os.environ.get("RANK", "0")) == (request.shard or (0, 1))[0] == 0
    if config.kind not in SHARED and not is_first:
        return  # the first process, or task of an array, makes it all
    if not request.dry_run:
        _have_files(config, request, fetch_only)
        if fetch_only:
            return
        if count > 1 and "WORLD_SIZE" not in os.environ:
            _spread(count)
    written = import_module(HANDLERS[config.kind]).run(config, request)
    for path in [*written, write_index(request.results)] if written else []:
        click.echo(f"wrote {path}")


def _request(config: Config, options: dict[str, Any]) -> Request:
    """The options, checked before anything is loaded or started. Raises ValueError, OSError."""
    chosen, shard = options["rows"], shard_of(options["shard"])
    if chosen is not None and config.kind not in WITH_ROWS:
        raise ValueError(f"{config.name} is made as a whole: leave out --rows")
    chosen_rows(config, chosen)
    if options["shard"] is not None and config.kind not in SHARED:
        raise ValueError(f"{config.name} is not made in shards: leave out --shard")
    if options["real"] is not None and not Path(options["real"]).exists():
        raise FileNotFoundError(f"--real {options['real']} does not exist")
    if options["as_printed"] and not differs_as_printed(config, options["scale"]):
        click.echo(f"{config.name}: --as-printed changes nothing here", err=True)
        options["as_printed"] = False
    results = options["results"]
    if results is None:  # a trial must not replace what was made in full
        whole = ROOT / "results"
        is_trial = options["num"] is not None or chosen is not None
        results, options["rows_in"] = whole / "trial" if is_trial else whole, whole / "rows"
    if results.exists() and not results.is_dir():
        raise NotADirectoryError(f"--results {results} is a file: name a folder")
    request = Request(**options | {"shard": shard, "results": results})
    images_of(config, request)
    return request


def count_of(text: str, config: Config, request: Request) -> int:
    """How many processes to start. Raises ValueError."""
    if text != "auto":
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"--processes wants a number from 1 on, or auto, not '{text}'")
        return int(text) if config.kind in SHARED else 1
    if config.kind not in SHARED:
        return 1
    if request.scale == "paper" or request.device != "auto":
        import torch

        from erk.runtime.distributed import pick_device

        if pick_device(request.device).type == "cuda":
            return torch.cuda.device_count()
    return min(os.cpu_count() or 1, MOST)


def _have_files(config: Config, request: Request, fetch_only: bool) -> None:
    """Download all files that are wanted before anything is loaded."""
    if request.scale == "embedded" or config.kind in WITHOUT_FILES:
        if fetch_only:
            click.echo(f"{config.name}: nothing is to be fetched")
        return
    if config.kind == "text-to-image":  # a pipeline of another package, which has its own cache
        from scripts.paper.text_to_image import fetch_weights

        if fetch_only:
            fetch_weights(config, request.offline)
        return
    from scripts.paper.plan import fetch_files, files_of

    command = ["bash scripts/reproduce.sh", config.name, "--scale", request.scale]
    command += ["--rows", request.rows] if request.rows else []
    command += ["--real", request.real] if request.real else []
    files = files_of(config, request)
    fetch_files(files, request.offline, " ".join([*command, "--fetch"]))
    if fetch_only:
        click.echo(f"{config.name}: all {len(files)} files are there")


def _spread(count: int) -> None:
    """Start this command again in several processes; does not return."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    module = ["--module", "--", "scripts.paper.reproduce", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, *launch, *module])


if __name__ == "__main__":
    main()

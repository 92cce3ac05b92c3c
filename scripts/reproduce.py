"""One table or figure of the paper: python scripts/reproduce.py table2

Makes what is not there yet and writes results/NAME.csv, .md, .tex, .html and .json. At embedded
scale (the default) small networks of digits stand for the paper's, on the CPU, in minutes.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from erk.jobs.cli import CONTEXT, clean_exit
from erk.jobs.shards import shard_of
from scripts.tables.config import ROOT, SCALES, Config, Request, load_config

HANDLERS = {
    "sampled": "scripts.tables.sampled",
    "settings": "scripts.tables.settings",
    "toy": "scripts.tables.toy",
    "timing": "scripts.tables.timing",
    "estimator": "scripts.tables.estimator",
    "sweep": "scripts.tables.sweeps",
    "grid": "scripts.tables.grids",
    "text-to-image": "scripts.tables.text_to_image",
}
MOST = 8  # processes that "auto" starts on a CPU: a row has no more batches


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
@click.option("--results", type=click.Path(path_type=Path), metavar="DIR",
              default=ROOT / "results", show_default="results", help="Where files go.")  # fmt: skip
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
    shard = shard_of(options["shard"])
    request = Request(**options | {"shard": shard})
    if not request.dry_run:
        _have_files(config, request, fetch_only)
        if fetch_only:
            return
        count = count_of(processes, config, request)
        if count > 1 and "WORLD_SIZE" not in os.environ:
            _spread(count)
    for path in import_module(HANDLERS[config.kind]).run(config, request):
        click.echo(f"wrote {path}")


def count_of(text: str, config: Config, request: Request) -> int:
    """How many processes to start. Raises ValueError."""
    if text != "auto":
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"--processes wants a number from 1 on, or auto, not '{text}'")
        return int(text)
    if config.kind != "sampled":
        return 1
    if request.scale == "paper" or request.device != "auto":
        import torch

        from erk.world import pick_device

        if pick_device(request.device).type == "cuda":
            return torch.cuda.device_count()
    return min(os.cpu_count() or 1, MOST)


def _have_files(config: Config, request: Request, fetch_only: bool) -> None:
    """Download all files that are wanted before anything is loaded."""
    if request.scale == "embedded":  # all is in this repository
        return
    from scripts.tables.plan import fetch_files, files_of

    command = ["python scripts/reproduce.py", config.name, "--scale", request.scale]
    command += ["--rows", request.rows] if request.rows else []
    command += ["--real", request.real] if request.real else []
    files = files_of(config, request)
    fetch_files(files, request.offline, " ".join([*command, "--fetch"]))
    if fetch_only:
        click.echo(f"{config.name}: all {len(files)} files are there")


def _spread(count: int) -> None:
    """Start this command again in several processes; does not return."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "--"]
    os.execv(sys.executable, [sys.executable, *launch, __file__, *sys.argv[1:]])


if __name__ == "__main__":
    main()

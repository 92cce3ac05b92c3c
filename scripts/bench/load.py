"""Large jobs: 50 000 pictures by two processes, a zip of 100 000 measured, a million seeds.

    python -m scripts.bench.load     # ten minutes on two cores, 1 GB of memory, 5 GB of disk

Writes results/bench/load.json. Every figure is of processes of its own, with the load that the
machine had at its end. The folder of pictures lies in the system's place for temporary files;
TMPDIR names another one.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.images import image_path, png_bytes
from erk.generation.manifest import Entry, to_line
from erk.generation.run_folder import RunFolder
from erk.generation.seeds import parse_seeds
from scripts.bench.paired import OUT, Row, report

ROOT = Path(__file__).resolve().parents[2]
MEBI = 2**20
SETTINGS = {"steps": 32, "subdirs": True}
GOES_ON = "seeds of a {} run that goes on; memory beyond the list of them"
MADE = "generate.py, 32 steps, into a zip, torchrun with 2 processes"
MEASURED = "evaluate.py on {}, from start to end; all its memory"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PICTURE = png_bytes(np.zeros((1, 8, 8), np.uint8))


def begun(folder: Path, kind: str, n: int) -> None:
    """A run of n seeds that was stopped before its last one."""
    run = RunFolder(folder, kind, True, SETTINGS | {"format": kind})
    facts = {"seeds": f"0-{n - 1}", "batch": 32, "network": None, "guide": None}
    run.check([0])
    run.check_networks(facts)
    run.begin(facts)
    run.add([0], [np.zeros((1, 8, 8), np.uint8)], batch=32, nfe=63.0, guide_nfe=0.0)
    (path,) = (folder / ".parts").glob("*.jsonl")
    first = Entry(**json.loads(path.read_text("utf-8")))
    with open(path, "wb") as lines:
        for seed in range(n - 1):
            place = image_path(folder, seed, True)
            name = place.relative_to(folder).as_posix()
            at = None if kind == "png" else seed * len(PICTURE)
            lines.write(to_line(first._replace(seed=seed, file=name, at=at)))
            if kind == "png":
                if seed % 1000 == 0:
                    place.parent.mkdir(exist_ok=True)
                place.write_bytes(PICTURE)
    if kind != "png":
        with open(path.with_suffix(".pictures"), "wb") as pictures:
            for _ in range(n - 1):
                pictures.write(PICTURE)


def goes_on(folder: Path, kind: str, n: int) -> Row:
    """What it takes to find the one seed that lacks; the list of seeds itself is not counted."""
    seeds = parse_seeds(f"0-{n - 1}")
    run = RunFolder(folder, kind, True, SETTINGS | {"format": kind})
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    assert run.check(seeds) == [n - 1]
    spent = {"seconds": time.perf_counter() - start, "CPU s": time.process_time() - cpu}
    return spent | {"MiB": peak() - before, "load": os.getloadavg()[0]}


def peak() -> float:
    """Most resident memory that this process has had, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBI


def in_fresh_process(*words: object) -> Row:
    """``goes_on`` in a process of its own, where no earlier peak hides this one."""
    command = [sys.executable, str(Path(__file__).resolve()), "--of", *map(str, words)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def taken(*words: object) -> Row:
    """What a command takes with all processes below it; the memory is that of the largest one."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise ValueError(f"the command {' '.join(map(str, words))} failed: see above")
    return {"seconds": time.perf_counter() - start, "CPU s": used.ru_utime + used.ru_stime,
            "MiB": used.ru_maxrss / 1024, "load": os.getloadavg()[0]}  # fmt: skip


def measured(folder: Path, n: int) -> Row:
    """evaluate.py on folder/images.zip, which holds n pictures, from its start to its row."""
    command = [sys.executable, ROOT / "evaluate.py", "--images", folder / "images.zip", "--ref",
               "digits", "--device", "cpu", "--cache", folder / "features", "--json",
               folder / "row.json"]  # fmt: skip
    row = taken(*command)
    assert json.loads((folder / "row.json").read_text())["n"] == n
    return row


def made_and_measured(folder: Path, n: int) -> Iterator[Row]:
    """n digits end to end: two processes that sample them, one that measures."""
    command = [*TORCHRUN, ROOT / "generate.py", "--preset", "digits", "--device", "cpu",
               "--seeds", f"0-{n - 1}", "--format", "zip", "--outdir", folder]  # fmt: skip
    yield {"what": MADE, "n": n} | taken(*command)
    assert json.loads((folder / "run.json").read_text())["complete"]
    yield {"what": MEASURED.format("these"), "n": n} | measured(folder, n)


def noise_measured(folder: Path, n: int) -> Row:
    """A zip of n pictures of noise."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for seed in range(n):
            picture = rng.integers(0, 256, (1, 8, 8), np.uint8)
            archive.writestr(f"{seed:06d}.png", png_bytes(picture))
    return {"what": MEASURED.format("a zip of noise"), "n": n} | measured(folder, n)


def figures(images: int, seeds: int, pictures: int) -> Iterator[Row]:
    """The rows, as they come."""
    with tempfile.TemporaryDirectory() as place:
        yield from made_and_measured(Path(place) / "out", images)
    with tempfile.TemporaryDirectory() as place:
        yield noise_measured(Path(place), pictures)
    for kind in ("zip", "png"):
        for n in (seeds // 10, seeds):
            with tempfile.TemporaryDirectory() as place:
                begun(Path(place), kind, n)
                yield {"what": GOES_ON.format(kind), "n": n} | in_fresh_process(place, kind, n)


@click.command(context_settings=CONTEXT)
@click.option("--images", default=50_000, help="Pictures of the job of two processes.")
@click.option("--seeds", default=1_000_000, help="Seeds of the runs that go on.")
@click.option("--zip", "pictures", default=100_000, help="Pictures of the zip.")
@click.option("--of", nargs=3, hidden=True)
@OUT
@clean_exit
def main(
    images: int, seeds: int, pictures: int, of: tuple[str, str, str] | None, out: Path
) -> None:
    """Time how large jobs start and are measured, and take their memory."""
    if of is not None:
        click.echo(json.dumps(goes_on(Path(of[0]), of[1], int(of[2]))))
        return
    rows: list[Row] = []
    for row in figures(images, seeds, pictures):
        click.echo(json.dumps(row), err=True)  # what is measured is told, should the rest not end
        rows.append(row)
    report("load", rows, [], out)


if __name__ == "__main__":
    main()

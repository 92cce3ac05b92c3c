"""Large jobs: 50 000 images from two processes, evaluation of a zip of 100 000, a million seeds.

    python -m scripts.bench.load     # ten minutes on two cores, 1 GB of memory, 5 GB of disk

Every row is measured in new processes and gives the machine's load average at its end. Images are
written below TMPDIR.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import numpy as np

from erk.generation.images import png_bytes
from erk.generation.run_folder import RunFolder
from erk.generation.seeds import parse_seeds
from scripts.bench.paired import Row, Setup, bench, in_subprocess, resident_peak

SETTINGS = {"steps": 32, "subdirs": True}
RESUMED = "resuming a {} run; memory beyond the list of seeds"
GENERATED = "erk generate, 32 steps, into a zip, torchrun with 2 processes"
EVALUATED = "erk evaluate on {}; all its memory"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
IMAGE = png_bytes(np.zeros((1, 8, 8), np.uint8))


def opened(folder: Path, kind: str, n: int) -> RunFolder:
    """Return a run of n seeds, before it looks at its folder."""
    metadata = {"seeds": f"0-{n - 1}", "batch": 32, "network": None, "guide": None}
    settings = SETTINGS | {"format": kind}
    return RunFolder(folder, settings, parse_seeds(f"0-{n - 1}"), metadata, batch=32)


def interrupted(folder: Path, kind: str, n: int) -> None:
    """Write a run of n seeds that was interrupted before its last one."""
    run = opened(folder, kind, n)
    run.look()
    with suppress(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    record = run.files.record(0, IMAGE)._replace(
        settings=run.settings_key(), batch=32, nfe=63.0, guide_nfe=0.0
    )
    with open(folder / ".parts" / "0-of-1.0.0.jsonl", "wb") as log:
        for seed in range(n - 1):
            log.write(record._replace(seed=seed, file=run.files.name(seed)).to_line())
            path = run.files.path(seed)
            if seed % 1000 == 0:
                path.parent.mkdir(exist_ok=True)
            path.write_bytes(IMAGE)


def resume(folder: Path, kind: str, n: int) -> Row:
    """Measure the search for the one missing seed; memory of the list of seeds does not count."""
    run = opened(folder, kind, n)
    before, start, cpu = resident_peak(), time.perf_counter(), time.process_time()
    run.look()
    assert run.pending == [n - 1]
    spent = {"seconds": time.perf_counter() - start, "CPU s": time.process_time() - cpu}
    return spent | {"MiB": resident_peak() - before, "load": os.getloadavg()[0]}


def measure(*words: object) -> Row:
    """Run a command; return times of all its processes, and the memory of the largest one."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise ValueError(f"the command failed, see above: {' '.join(map(str, words))}")
    return {"seconds": time.perf_counter() - start, "CPU s": used.ru_utime + used.ru_stime,
            "MiB": used.ru_maxrss / 1024, "load": os.getloadavg()[0]}  # fmt: skip


def evaluate(folder: Path, n: int) -> Row:
    """Measure erk evaluate on folder/images.zip with n images."""
    command = [sys.executable, "-m", "erk", "evaluate", "--images", folder / "images.zip", "--ref",
               "digits", "--device", "cpu", "--cache", folder / "features", "--json",
               folder / "row.json"]  # fmt: skip
    row = measure(*command)
    assert json.loads((folder / "row.json").read_text())["n"] == n
    return row


def digits(folder: Path, n: int) -> Iterator[Row]:
    """Measure two processes that sample n digits, and one that evaluates them."""
    command = [*TORCHRUN, "-m", "erk", "generate", "--preset", "digits", "--device", "cpu",
               "--seeds", f"0-{n - 1}", "--format", "zip", "--outdir", folder]  # fmt: skip
    yield {"what": GENERATED, "n": n} | measure(*command)
    assert json.loads((folder / "run.json").read_text())["complete"]
    yield {"what": EVALUATED.format("these"), "n": n} | evaluate(folder, n)


def noise(folder: Path, n: int) -> Row:
    """Measure the evaluation of a zip of n images of noise."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for seed in range(n):
            image = rng.integers(0, 256, (1, 8, 8), np.uint8)
            archive.writestr(f"{seed:06d}.png", png_bytes(image))
    return {"what": EVALUATED.format("a zip of noise"), "n": n} | evaluate(folder, n)


def rows_of(images: int, seeds: int, zipped: int) -> Iterator[Row]:
    """Yield the rows as they are measured."""
    with tempfile.TemporaryDirectory() as folder:
        yield from digits(Path(folder) / "out", images)
    with tempfile.TemporaryDirectory() as folder:
        yield noise(Path(folder), zipped)
    for kind in ("zip", "png"):
        for n in (seeds // 10, seeds):
            with tempfile.TemporaryDirectory() as folder:
                interrupted(Path(folder), kind, n)
                row = in_subprocess("spawn", resume, Path(folder), kind, n)
                yield {"what": RESUMED.format(kind), "n": n} | row


@bench(
    click.option("--images", default=50_000, help="Images of the job of two processes."),
    click.option("--seeds", default=1_000_000, help="Seeds of the resumed runs."),
    click.option("--zip", "zipped", default=100_000, help="Images of the zip."),
)
def main(setup: Setup, images: int, seeds: int, zipped: int) -> list[Row]:
    """Time how large jobs start and are evaluated, and measure their memory."""
    rows: list[Row] = []
    for row in rows_of(images, seeds, zipped):
        click.echo(json.dumps(row), err=True)  # in case a later row fails
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()

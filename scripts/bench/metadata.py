"""Operations on a disk's metadata per image that erk generate writes, counted by strace.

    python -m scripts.bench.metadata     # a minute on one core

Each format is run twice, with --images and three times as many, so what a run does once cancels.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from scripts.bench.paired import Row, Setup, bench

OPERATIONS = {
    "open": ("open", "openat"),
    "fsync": ("fsync", "fdatasync"),
    "rename": ("rename", "renameat", "renameat2"),
    "stat": ("stat", "lstat", "fstat", "newfstatat", "statx"),
}
"""Name -> system calls of Linux."""
GENERATE = ("-m", "erk", "generate", "--preset", "digits", "--steps", "1", "--solver", "euler",
            "--batch", "50")  # fmt: skip


def calls_of(summary: str) -> Counter[str]:
    """Return the number of calls by system call in the table that `strace -c` writes."""
    calls: Counter[str] = Counter()
    for line in summary.splitlines():
        cells = line.split()  # share of time, seconds, microseconds per call, calls, [errors,] name
        if len(cells) in (5, 6) and cells[3].isdigit() and cells[-1] != "total":
            calls[cells[-1]] += int(cells[3])
    return calls


def count(format: str, n: int) -> Counter[str]:
    """Count the operations of a run of n images, in all of its threads and processes."""
    with tempfile.TemporaryDirectory() as name:
        summary = Path(name) / "summary"
        command = ["strace", "-f", "-c", "-o", str(summary), sys.executable, *GENERATE,
                   "--format", format, "--seeds", f"0-{n - 1}",
                   "--outdir", str(Path(name) / "images")]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f"the counted command failed: {result.stderr.strip()}.")
        calls = calls_of(summary.read_text("utf-8"))
    return Counter({kind: sum(calls[one] for one in names) for kind, names in OPERATIONS.items()})


@bench(
    click.option(
        "--format",
        "formats",
        multiple=True,
        default=("png", "zip"),
        help="Format of the images; may be repeated.",
    ),
    click.option(
        "--images", "n", default=100, type=click.IntRange(1), help="Images of the first run."
    ),
)
def main(setup: Setup, formats: tuple[str, ...], n: int) -> Iterator[Row]:
    """Count operations on metadata per image."""
    if shutil.which("strace") is None:
        raise ValueError("this machine has no strace: install it to count system calls.")
    for format in formats:
        few, many = count(format, n), count(format, 3 * n)
        per_image = {kind: (many[kind] - few[kind]) / (2 * n) for kind in OPERATIONS}
        yield {"format": format, "images": 2 * n} | per_image


if __name__ == "__main__":
    main()

"""Writing images inline against beside the sampler, and how images become PNG files.

    python -m scripts.bench.writing     # minutes on two cores
    python -m scripts.bench.writing --size 32 --images 4 --rounds 1 --sampling 0.01    # a trial

The sampler is a stand-in: matrix products on one thread that take as long per image as
``--sampling`` says. Its images look like photographs to an encoder: noise whose power falls
with the frequency. Also the real sampler of digits, whose calls are so short that it shares
Python's lock with the writer. Writes results/bench/writing.json and .md.
"""

import functools
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.images import png_bytes
from erk.generation.run_folder import RunFolder
from erk.generation.sampling import generate
from erk.generation.writer import beside, threads
from erk.method.settings import Settings
from erk.models.model import load_model
from scripts.bench.paired import (
    OUT,
    ROUNDS,
    Row,
    in_turns,
    photographs,
    report,
    summary,
    use_threads,
)

BATCH = 4
PNG: dict[str, dict[str, Any]] = {
    "ours": {"compress_level": 1, "compress_type": 3},
    "Pillow's default (level 6)": {},
    "level 1": {"compress_level": 1},
    "not compressed": {"compress_level": 0},
}


Batches = Callable[[], Iterator[tuple[Sequence[int], np.ndarray]]]
"""What samples anew at each call: seeds and images of one batch after the other."""


def digits(n: int) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Batches of n images 8x8 of the embedded network."""
    for batch in generate(load_model("digits"), range(n), Settings(steps=8), batch=32):
        yield batch.seeds, batch.images.numpy()


def sample(images: np.ndarray, seconds: float) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Batches of images, each after so many seconds of computing per image on this thread."""
    a = torch.randn(512, 512)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        end = time.thread_time() + seconds * len(part)
        while time.thread_time() < end:  # its own time: other threads do not shorten the work
            a @ a
        yield list(range(start, start + len(part))), part


def new_folder(place: Path) -> RunFolder:
    """An empty folder of a run."""
    shutil.rmtree(place, ignore_errors=True)
    folder = RunFolder(place, "png", False, {})
    facts = {"seeds": "0", "batch": BATCH, "network": None, "guide": None}
    folder.check([0])
    folder.check_networks(facts)
    folder.begin(facts)
    return folder


def write_inline(place: Path, batches: Batches) -> None:
    """A batch is on the disk before the next one begins."""
    folder = new_folder(place)
    for seeds, part in batches():
        folder.add(seeds, part)


def write_beside(place: Path, batches: Batches, count: int) -> None:
    """As generate.py does."""
    folder = new_folder(place)
    with threads(count) as folder.each, beside() as hand_over:
        for seeds, part in batches():
            hand_over(folder.add, seeds, part)


def pillow(images: np.ndarray, how: dict[str, Any]) -> int:
    """Encode all; bytes per image."""
    total = 0
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG", **how)
        total += len(stream.getvalue())
    return total // len(images)


def ways(place: Path, batches: Batches) -> dict[str, Callable[[], Any]]:
    """To sample and write all images; the last one only samples."""
    return {
        "ours": functools.partial(write_beside, place, batches, 1),
        "beside, 4 threads": functools.partial(write_beside, place, batches, 4),
        "inline": functools.partial(write_inline, place, batches),
        "not written": lambda: [None for _ in batches()],
    }


def encoders(images: np.ndarray) -> dict[str, Callable[[], int]]:
    """To encode all images; they return the bytes per image."""
    return {name: functools.partial(pillow, images, how) for name, how in PNG.items()}


def rows_of(what: str, codes: dict[str, Callable[[], Any]], n: int, rounds: int) -> list[Row]:
    """One row per code; milliseconds are those per image."""
    runs = in_turns(codes, rounds)
    sizes = {name: {"bytes per image": r.value} for name, r in runs.items() if r.value}
    return [
        {"what": what, "code": name, "ms per image": 1e3 * figures["seconds"] / n}
        | figures
        | (sizes.get(name, {}) if what == "encode" else {})
        for name, figures in summary(runs).items()
    ]


@click.command(context_settings=CONTEXT)
@click.option("--size", default=512, help="Pixels per side.")
@click.option("--images", "n", default=32, help="Images per run.")
@click.option("--sampling", default=0.2, help="CPU seconds that the stand-in takes per image.")
@ROUNDS
@OUT
@clean_exit
def main(size: int, n: int, sampling: float, rounds: int, out: Path) -> None:
    """Time how images get to the disk."""
    use_threads(1)
    images = photographs(n, size)
    assert pillow(images[:1], PNG["ours"]) == len(png_bytes(images[0]))
    with tempfile.TemporaryDirectory() as place:
        stand_in = functools.partial(sample, images, sampling)
        rows = rows_of("sample and write", ways(Path(place), stand_in), n, rounds)
        few = functools.partial(digits, 8 * n)
        rows += rows_of("the same, digits", ways(Path(place), few), 8 * n, rounds)
    rows += rows_of("encode", encoders(images), n, rounds)
    for row in rows:
        side = 8 if "digits" in row["what"] else size
        row["pixels"] = f"{side}x{side}"
        row["bytes"] = side**2 * (1 if side == 8 else 3)
    report("writing", rows, ["pillow"], out)


if __name__ == "__main__":
    main()

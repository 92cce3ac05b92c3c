"""Writing images inline against concurrently with the sampler, and encoding of PNG files.

    python -m scripts.bench.writing     # minutes on two cores
    python -m scripts.bench.writing --size 32 --images 4 --rounds 1 --sampling 0.01    # a trial

The sampler is a substitute: matrix products on one thread for --sampling seconds per image. Its
images compress like photographs. The sampler of digits is timed as well, because its calls are so
short that it competes with the writer for Python's lock.
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

from erk.generation.archives import ImageFiles
from erk.generation.images import png_bytes
from erk.generation.job import Job
from erk.generation.manifest import ImageLog
from erk.generation.sampling import generate
from erk.generation.writer import background, thread_map
from erk.method.settings import Settings
from erk.models.model import load_model
from scripts.bench.paired import Row, Setup, bench, in_turns, summary
from scripts.bench.photographs import photographs

BATCH = 4
PNG: dict[str, dict[str, Any]] = {
    "ours": {"compress_level": 1, "compress_type": 3},
    "Pillow's default (level 6)": {},
    "level 1": {"compress_level": 1},
    "not compressed": {"compress_level": 0},
}

Batches = Callable[[], Iterator[tuple[Sequence[int], np.ndarray]]]
"""Samples, and yields the seeds and images of every batch."""


def digits(n: int) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Sample n digits 8x8 with the embedded network."""
    for batch in generate(Job(load_model("digits"), Settings(steps=8), seeds=range(n))):
        yield batch.seeds, batch.wait().numpy()


def sample(images: np.ndarray, seconds: float) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Yield the images in batches, after `seconds` of computation per image on this thread."""
    a = torch.randn(512, 512)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        end = time.thread_time() + seconds * len(part)
        while time.thread_time() < end:  # of this thread: other threads do not shorten the work
            a @ a
        yield list(range(start, start + len(part))), part


class Folder:
    """An empty folder that images and their records are written to."""

    def __init__(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        self.files, self.log = ImageFiles(path, False, "png"), ImageLog(path, "0-of-1.0")

    def add(self, each: Callable[..., Any], seeds: Sequence[int], images: np.ndarray) -> None:
        """Encode and write images by a `map`, then append their records."""
        data = list(each(png_bytes, images))
        records = [self.files.record(seed, png) for seed, png in zip(seeds, data, strict=True)]
        list(each(self.files.write, records, data))
        self.log.append(records)


def write_inline(path: Path, batches: Batches) -> None:
    """Write each batch before the next one is sampled."""
    folder = Folder(path)
    for seeds, part in batches():
        folder.add(map, seeds, part)


def write_concurrently(path: Path, batches: Batches, count: int) -> None:
    """Write each batch while the next one is sampled, as erk generate does."""
    folder = Folder(path)
    with thread_map(count) as each, background() as submit:
        for seeds, part in batches():
            submit(folder.add, each, seeds, part)


def encode(images: np.ndarray, options: dict[str, Any]) -> int:
    """Encode all images with Pillow; return the bytes per image."""
    total = 0
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG", **options)
        total += len(stream.getvalue())
    return total // len(images)


def writers(path: Path, batches: Batches) -> dict[str, Callable[[], Any]]:
    """Return codes that sample and write all images; the last one only samples."""
    return {
        "ours": functools.partial(write_concurrently, path, batches, 1),
        "concurrently, 4 threads": functools.partial(write_concurrently, path, batches, 4),
        "inline": functools.partial(write_inline, path, batches),
        "not written": lambda: [None for _ in batches()],
    }


def encoders(images: np.ndarray) -> dict[str, Callable[[], int]]:
    """Return codes that encode all images and return the bytes per image."""
    return {name: functools.partial(encode, images, options) for name, options in PNG.items()}


def rows_of(what: str, codes: dict[str, Callable[[], Any]], n: int, rounds: int) -> list[Row]:
    """Return one row per code."""
    runs = in_turns(codes, rounds)
    sizes = {name: {"bytes per image": r.value} for name, r in runs.items() if r.value}
    return [
        {"what": what, "code": name, "ms per image": 1e3 * times["seconds"] / n}
        | times
        | (sizes.get(name, {}) if what == "encode" else {})
        for name, times in summary(runs).items()
    ]


@bench(
    click.option("--size", default=512, help="Pixels per side."),
    click.option("--images", "n", default=32, help="Images per run."),
    click.option("--sampling", default=0.2, help="CPU seconds of sampling per image."),
    packages=["pillow"],
)
def main(setup: Setup, size: int, n: int, sampling: float) -> list[Row]:
    """Time encoding and writing of images."""
    images = photographs(n, size)
    assert encode(images[:1], PNG["ours"]) == len(png_bytes(images[0]))
    with tempfile.TemporaryDirectory() as folder:
        codes = writers(Path(folder), functools.partial(sample, images, sampling))
        rows = rows_of("sample and write", codes, n, setup.rounds)
        codes = writers(Path(folder), functools.partial(digits, 8 * n))
        rows += rows_of("the same, digits", codes, 8 * n, setup.rounds)
    rows += rows_of("encode", encoders(images), n, setup.rounds)
    for row in rows:
        side = 8 if "digits" in row["what"] else size
        row |= {"pixels": f"{side}x{side}", "bytes": side**2 * (1 if side == 8 else 3)}
    return rows


if __name__ == "__main__":
    main()

"""Images of two runs with the same seeds: their differences, and a sheet of the largest."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click
import numpy as np
from tqdm import tqdm

from erk.generation.sheets import SheetCell, captioned_sheet
from metrics.images import ImageSource, read_image
from metrics.selection import seeds_of


class Pair(NamedTuple):
    """The images of one seed in two runs; pairs sort by difference, then by seed."""

    difference: float  # root mean square over pixels and colours, in grey levels of 255
    seed: int
    indices: tuple[int, int]  # of its images in the two runs


def differences(first: ImageSource, second: ImageSource) -> Iterator[Pair]:
    """Yield the difference of every seed that both runs have, in the order of the seeds.

    Raises ValueError if they share none, repeat a seed, or differ in the size of their images.
    """
    runs = [_by_seed(run) for run in (first, second)]
    common = sorted(runs[0].keys() & runs[1].keys())
    if not common:
        raise ValueError(f"{first.path} and {second.path} share no seed: compare runs of the same")
    single = len(runs[0]) + len(runs[1]) - 2 * len(common)
    if single:
        click.echo(f"{single} images of seeds that only one run has are left out", err=True)
    for seed in tqdm(common, "Comparing", unit="img", mininterval=0.5, disable=len(common) < 1000):
        indices = runs[0][seed], runs[1][seed]
        a, b = (read_image(run, i) for run, i in zip((first, second), indices, strict=True))
        if a.shape != b.shape:
            raise ValueError(
                f"seed {seed} has {_size(a)} in {first.path}, but {_size(b)} in {second.path}: "
                "compare images of one size"
            )
        difference = a.astype(np.float64) - b
        yield Pair(float(np.sqrt(np.mean(difference**2))), seed, indices)


def sheet(
    first: ImageSource, second: ImageSource, names: Sequence[str], pairs: Sequence[Pair]
) -> np.ndarray:
    """Return both images of each pair and their difference around grey, uint8 [3, H, W].

    One factor for all makes the largest difference black or white.
    """
    images = [
        [read_image(run, index).transpose(2, 0, 1).astype(np.float32)
         for run, index in zip((first, second), pair.indices, strict=True)]
        for pair in pairs
    ]  # fmt: skip
    factor = 127 / max(1.0, *(float(np.abs(b - a).max()) for a, b in images))
    columns = [
        [SheetCell(a.astype(np.uint8), f"seed {pair.seed}"), SheetCell(b.astype(np.uint8)),
         SheetCell((128 + factor * (b - a)).astype(np.uint8), f"{pair.difference:.1f}")]
        for pair, (a, b) in zip(pairs, images, strict=True)
    ]  # fmt: skip
    title = f"largest differences first; below {factor:.2g} x ({names[1]} - {names[0]}) around grey"
    return captioned_sheet(columns, [*names, "difference"], title)


def changed_settings(first: ImageSource, second: ImageSource, names: Sequence[str]) -> str:
    """Return a line on the settings, by their run.json, in which two runs differ."""
    a, b = (run.run.get("settings") for run in (first, second))
    if a is None or b is None:
        return "settings unknown: not both runs have a run.json"
    off = [f"{k} {a.get(k)} / {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    return f"settings of {names[0]} / {names[1]}: {', '.join(off) if off else 'the same'}"


def _by_seed(run: ImageSource) -> dict[int, int]:
    seeds = seeds_of(run)
    if seeds is None:
        raise ValueError(
            f"{run.path} holds images without a seed in their name, such as 12.png, or several of "
            "one seed: keep one image per seed"
        )
    return {seed: index for index, seed in enumerate(seeds)}


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} pixels, {image.shape[2]} channels"

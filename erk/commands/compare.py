"""Two runs of the same seeds side by side, the largest differences first; a PNG.

    erk compare off on --out differences.png

Runs are folders, .zip or .npz as generate.py writes them, paired by their seeds. The difference of
two pictures is the root mean square over pixels and colours, in grey levels of 255.
"""

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from erk.commands.cli import CONTEXT, clean_exit
from metrics.images import ImageSource, open_images, read_image, seeds_of


class Pair(NamedTuple):
    """What two runs made of one seed; pairs sort by difference, then by seed."""

    difference: float  # root mean square, grey levels
    seed: int
    places: tuple[int, int]  # where its pictures stand in the two runs


@click.command(context_settings=CONTEXT)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="FILE.png", help="The sheet.")
@click.option("--num", type=click.IntRange(1, 200), default=16, help="Pairs on the sheet.")
@click.option("--csv", "table", metavar="FILE.csv", help="Also write the difference of each seed.")
@clean_exit
def main(first: Path, second: Path, out: str, num: int, table: str | None) -> None:
    """Compare the runs FIRST and SECOND picture by picture."""
    if not out.endswith(".png"):
        raise ValueError(f"--out {out} must end in .png; rename it")
    from erk.generation.images import png_bytes
    from metrics.table import to_csv, write

    runs = open_images(first), open_images(second)
    pairs = list(differences(*runs))
    values = np.array([pair.difference for pair in pairs])
    largest = heapq.nlargest(num, pairs)
    names = [Path(first).name, Path(second).name]
    written = [write(out, png_bytes(sheet(*runs, names, largest)))]
    if table is not None:
        rows = [{"seed": pair.seed, "difference": pair.difference} for pair in pairs]
        written.append(write(table, to_csv(rows)))
    click.echo(told_settings(*runs, names))
    click.echo(
        f"{len(pairs)} seeds: difference {np.median(values):.2f} in the median, "
        f"{values.max():.2f} at most (seed {largest[0].seed}), {(values == 0).sum()} equal"
    )
    click.echo(f"wrote {' and '.join(map(str, written))}")


def differences(first: ImageSource, second: ImageSource) -> Iterator[Pair]:
    """The difference of every seed that both runs have, in order of seeds.

    Raises ValueError if they share none, name a seed twice, or differ in the size of pictures.
    """
    from tqdm import tqdm

    places = [_by_seed(run) for run in (first, second)]
    common = sorted(places[0].keys() & places[1].keys())
    if not common:
        raise ValueError(f"{first.path} and {second.path} share no seed: compare runs of the same")
    lone = len(places[0]) + len(places[1]) - 2 * len(common)
    if lone:
        click.echo(f"{lone} pictures of seeds that only one run has are left out", err=True)
    for seed in tqdm(common, "Comparing", unit="img", mininterval=0.5, disable=len(common) < 1000):
        at = places[0][seed], places[1][seed]
        a, b = (read_image(run, place) for run, place in zip((first, second), at, strict=True))
        if a.shape != b.shape:
            raise ValueError(f"seed {seed} has {_size(a)} in {first.path}, but {_size(b)} in "
                             f"{second.path}: compare pictures of one size")  # fmt: skip
        off = a.astype(np.float64) - b
        yield Pair(float(np.sqrt(np.mean(off**2))), seed, at)


def sheet(first: ImageSource, second: ImageSource, names: list[str], pairs: list[Pair]) -> Any:
    """Both pictures of each pair and their difference around grey, uint8 [3, H, W].

    One factor for the whole sheet makes the largest difference black or white.
    """
    from erk.generation.sheets import Cell, captioned_sheet

    images = [
        [read_image(run, place).transpose(2, 0, 1).astype(np.float32)
         for run, place in zip((first, second), pair.places, strict=True)]
        for pair in pairs
    ]  # fmt: skip
    factor = 127 / max(1.0, *(float(np.abs(b - a).max()) for a, b in images))
    columns = [
        [Cell(a.astype(np.uint8), f"seed {pair.seed}"), Cell(b.astype(np.uint8)),
         Cell((128 + factor * (b - a)).astype(np.uint8), f"{pair.difference:.1f}")]
        for pair, (a, b) in zip(pairs, images, strict=True)
    ]  # fmt: skip
    title = f"largest differences first; below {factor:.2g} x ({names[1]} - {names[0]}) around grey"
    return captioned_sheet(columns, [*names, "difference"], title)


def told_settings(first: ImageSource, second: ImageSource, names: list[str]) -> str:
    """In which settings two runs differ, by their run.json."""
    a, b = (run.run.get("settings") for run in (first, second))
    if a is None or b is None:
        return "settings unknown: not both runs have a run.json"
    off = [f"{k} {a.get(k)} / {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    return f"settings of {names[0]} / {names[1]}: {', '.join(off) if off else 'the same'}"


def _by_seed(run: ImageSource) -> dict[int, int]:
    seeds = seeds_of(run)
    if seeds is None:
        raise ValueError(f"{run.path} holds pictures without a seed in their name, such as 12.png")
    places = {seed: place for place, seed in enumerate(seeds)}
    if len(places) < len(seeds):
        raise ValueError(f"{run.path} holds several pictures of one seed: remove all but one")
    return places


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} pixels, {image.shape[2]} channels"


if __name__ == "__main__":
    main()

"""The training pictures that lie nearest to generated ones: does the network copy? A PNG.

    erk nearest out --train digits --out nearest.png
    erk nearest out --train imagenet64.zip --space dinov2 --out nearest.png

Distances are Euclidean between pixels, or between an extractor's features (--space). A picture
whose nearest training picture is less than a third as far as the second nearest counts as copied
(Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize"); the
sheet shows the smallest ratios first. Copies within the training set hide from this ratio: there
--by distance helps.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from erk.commands.cli import CONTEXT, clean_exit
from erk.runtime.distributed import World, pick_device
from metrics.extraction import Pass, image_chunks, work
from metrics.extractors import NAMES, Features, load_extractor
from metrics.images import ImageSource, open_images, read_image, seeds_of
from metrics.references import real_digits
from metrics.store import default_folder, load

COPIED = 1 / 3  # of the distance to the second nearest


class Pixels(NamedTuple):
    """Pixels as features: an Extractor whose distances are in grey levels of 255."""

    name: str = "pixels"
    sha256: str = "none"
    precision: str = "fp32"

    def __call__(self, images: Tensor) -> Features:
        """uint8 [B, C, H, W] -> float32 [B, C H W]."""
        return Features(images.flatten(1).to(torch.float32))


class Nearest(NamedTuple):
    """The k nearest training pictures of M generated ones, nearest first."""

    distances: Tensor  # [M, k]
    places: Tensor  # int64 [M, k], in the training set

    @property
    def ratios(self) -> Tensor:
        """Distance of the nearest over that of the second nearest, [M]; 1 where both are 0."""
        first, second = self.distances[:, 0], self.distances[:, 1]
        return torch.where(second > 0, first / second.clamp_min(1e-30), 1.0)


@click.command(context_settings=CONTEXT)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--train", required=True, metavar="PATH|digits", help="The training set: a folder, "
              ".zip or .npz, or scikit-learn's digits.")  # fmt: skip
@click.option("--out", required=True, metavar="FILE.png", help="The sheet.")
@click.option("--space", type=click.Choice(["pixels", *NAMES]), default="pixels",
              help="Where distances are measured.")  # fmt: skip
@click.option("--by", type=click.Choice(["ratio", "distance"]), default="ratio",
              help="What the sheet is ordered by, the smallest first.")  # fmt: skip
@click.option("--num", type=click.IntRange(1, 200), default=16, help="Pictures on the sheet.")
@click.option("--k", type=click.IntRange(2, 20), default=4, help="Neighbours of each.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@clean_exit
def main(run: Path, train: str, out: str, space: str, by: str, num: int, k: int, device: str,
         offline: bool) -> None:  # fmt: skip
    """Find the training pictures that the pictures of RUN (a folder, .zip or .npz) resemble."""
    if not out.endswith(".png"):
        raise ValueError(f"--out {out} must end in .png; rename it")
    from erk.generation.images import png_bytes
    from metrics.table import write

    made, place = open_images(run), str(pick_device(device))
    extractor: Any = Pixels() if space == "pixels" else load_extractor(space, place, None, offline)
    queries = torch.cat([part for _, part in feature_blocks(made, extractor, place)])
    if train == "digits":
        images, _ = real_digits()
        total, blocks = len(images), iter([(0, extractor(images).features)])
        read: Callable[[int], np.ndarray] = lambda i: images[i].numpy()  # noqa: E731
    else:
        real = open_images(train)
        total, blocks = len(real.names), feature_blocks(real, extractor, place)
        read = lambda i: read_image(real, i).transpose(2, 0, 1)  # noqa: E731
    if total < k:
        raise ValueError(f"{train} holds {total} pictures, fewer than --k {k}")
    found = nearest(queries.to(place), blocks, k)
    shown = sheet(made, read, found, by, num, f"{run.name}, nearest in {train}, {space}")
    click.echo(summary(found, space))
    click.echo(f"wrote {write(out, png_bytes(shown))}")


def feature_blocks(
    source: ImageSource, extractor: Any, device: str
) -> Iterator[tuple[int, Tensor]]:
    """(place of the first, features [B, D]) of a set, block by block; those of networks are kept.

    A killed run goes on where it was. Pixels are read again, as storing them would save nothing.
    """
    how = Pass({extractor.name: extractor}, {extractor.name: ("features",)}, default_folder(),
               device=device)  # fmt: skip
    chunks = image_chunks(source, how)(0, 1)
    if isinstance(extractor, Pixels):
        for chunk in chunks:
            yield chunk.start, extractor(chunk.read().images).features
        return
    alone, what = World(0, 1, torch.device(device)), f"Reading {source.path.name}"
    for chunk in work(how, chunks, alone, len(source.names), what):
        yield chunk.start, load(how.folder, extractor, chunk.key)["features"]


@torch.no_grad()
def nearest(queries: Tensor, blocks: Iterator[tuple[int, Tensor]], k: int) -> Nearest:
    """The k nearest of all blocks to each query [M, D]: memory holds one block at a time.

    Matrix products choose the candidates of a block; their distances are then taken exactly, so
    that a copy has distance 0. ValueError if the features have another width.
    """
    best = queries.new_full((len(queries), k), torch.inf)
    places = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    for start, block in blocks:
        block = block.to(queries)
        if block.shape[1] != queries.shape[1]:
            raise ValueError(
                f"generated pictures have {queries.shape[1]} values and training pictures "
                f"{block.shape[1]}: compare pictures of one size, or take another --space"
            )
        near = torch.cdist(queries, block).topk(min(k, len(block)), largest=False).indices
        exact = [torch.linalg.vector_norm(queries - block[i], dim=1) for i in near.unbind(1)]
        both = torch.cat([best, torch.stack(exact, 1)], 1)
        where = torch.cat([places, near + start], 1)
        best, order = both.sort(dim=1, stable=True)
        best, places = best[:, :k], where.gather(1, order)[:, :k]
    return Nearest(best.cpu(), places.cpu())


def sheet(
    made: ImageSource, read: Callable[[int], np.ndarray], found: Nearest, by: str, num: int,
    title: str,
) -> np.ndarray:  # fmt: skip
    """Generated pictures, each above its neighbours, uint8 [3, H, W]."""
    from erk.generation.sheets import Cell, captioned_sheet

    score = found.ratios if by == "ratio" else found.distances[:, 0]
    seeds = seeds_of(made)
    columns = []
    for i in score.argsort(stable=True)[:num].tolist():
        name = f"seed {seeds[i]}" if seeds else Path(made.names[i]).stem[:10]
        column = [Cell(read_image(made, i).transpose(2, 0, 1), name)]
        pairs = zip(found.places[i].tolist(), found.distances[i].tolist(), strict=True)
        columns.append(column + [Cell(read(place), f"{far:.4g}") for place, far in pairs])
    names = ["generated", *(f"nearest {j + 1}" for j in range(found.places.shape[1]))]
    return captioned_sheet(columns, names, f"{title}; smallest {by} first")


def summary(found: Nearest, space: str) -> str:
    """What the neighbours say in numbers."""
    first, ratios = found.distances[:, 0], found.ratios
    copied = int((ratios < COPIED).sum())
    equal = f", {int((first == 0).sum())} equal to one" if space == "pixels" else ""
    return (
        f"{len(first)} pictures, distances in {space}: nearest {first.median():.4g} in the median, "
        f"{first.min():.4g} at least; {copied} copied (nearest less than 1/3 as far as the second "
        f"nearest), smallest ratio {ratios.min():.3f}{equal}"
    )


if __name__ == "__main__":
    main()

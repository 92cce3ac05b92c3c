"""The command `nearest`: show the training images nearest to generated ones, to find copies."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command, require_suffix

if TYPE_CHECKING:
    import numpy as np

    from metrics.images import ImageSource
    from metrics.nearest import Nearest


@command(
    "erk nearest out --train digits --out nearest.png",
    "erk nearest out --train imagenet64.zip --space dinov2 --out nearest.png",
)
@click.argument("run", type=click.Path(path_type=Path))
@cloup.option_group(
    "Images and distances",
    cloup.option("--train", required=True, metavar="PATH|NAME", help="The training set: a "
                 "folder, .zip or .npz, or a reference that has images: digits."),
    cloup.option("--space", default="pixels", metavar="NAME", help="Distances between pixels, or "
                 "between features of inception, dinov2, dinov2-pil, vgg16, digits, mnist."),
    cloup.option("--k", type=click.IntRange(2, 20), default=4, help="Neighbours of each image."),
)  # fmt: skip
@cloup.option_group(
    "Sheet",
    cloup.option("--out", required=True, metavar="FILE.png", help="The sheet to write."),
    cloup.option("--by", "order", type=click.Choice(["ratio", "distance"]), default="ratio",
                 help="Order of the sheet, the smallest first."),
    cloup.option("--num", type=click.IntRange(1, 200), default=16, help="Images on the sheet."),
)  # fmt: skip
@cloup.option_group("Device", shared.device_option, shared.offline_option)
def main(run: Path, train: str, out: str, space: str, order: str, num: int, k: int, device: str,
         offline: bool) -> None:  # fmt: skip
    """Find the training images nearest to the images of RUN (a folder, .zip or .npz).

    Distances are Euclidean; those between pixels are in grey levels. An image counts as copied if
    its nearest training image is less than a third as far away as the second nearest (Yoon et al.
    2023). If the training set has duplicates, this ratio misses copies of them: use --by distance.
    """
    require_suffix("--out", out, ".png")
    from erk.io.atomic import check_target, save_file
    from metrics.images import open_images, read_image

    check_target(out, run, train)
    generated = open_images(run, least=1)  # before torch, whose import takes seconds

    import torch

    from erk.generation.images import png_bytes
    from erk.runtime.distributed import pick_device
    from metrics.extractors import load_extractor
    from metrics.nearest import Pixels, feature_blocks, nearest

    target = str(pick_device(device))
    total, blocks, read = _training_set(train, offline)
    if total < k:
        raise ValueError(f"{train} holds {total} images, fewer than --k {k}")
    extractor: Any = Pixels()
    if space != "pixels":
        extractor = load_extractor(space, target, None, offline)
    if space == "pixels":
        _check_shapes(run, read_image(generated, 0).transpose(2, 0, 1), train, read(0))
    queries = torch.cat([part for _, part in feature_blocks(generated, extractor, target)])
    neighbours = nearest(queries.to(target), blocks(extractor, target), k)
    title = f"{run.resolve().name}, nearest in {train}, {space}; smallest {order} first"
    page = _sheet(generated, read, neighbours, order, num, title)
    click.echo(_summary(neighbours, space))
    click.echo(f"wrote {save_file(out, png_bytes(page))}")


def _training_set(
    train: str, offline: bool
) -> tuple[int, Callable[[Any, str], Any], "Callable[[int], np.ndarray]"]:
    """Return the number of training images, (extractor, device) -> feature blocks, and a reader.

    The reader returns one image by its index.
    """
    from metrics.images import open_images, read_image
    from metrics.nearest import feature_blocks
    from metrics.references import known_references, real_images

    row = known_references().get(train)
    if row is not None and (row.images is not None or not Path(train).exists()):
        images, _ = real_images(train, offline)
        return (
            len(images),
            lambda extractor, device: iter([(0, extractor(images).features)]),
            lambda i: images[i].numpy(),
        )
    real = open_images(train, least=1)
    return (
        len(real.names),
        lambda extractor, device: feature_blocks(real, extractor, device),
        lambda i: read_image(real, i).transpose(2, 0, 1),
    )


def _check_shapes(run: Path, first: "np.ndarray", train: str, second: "np.ndarray") -> None:
    """Raise ValueError if images [C, H, W] whose pixels are compared differ in shape."""
    if first.shape != second.shape:
        raise ValueError(
            f"{run} holds images {list(first.shape)} but {train} {list(second.shape)} [channels, "
            "height, width]: compare images of one size, or choose another --space"
        )


def _sheet(
    generated: "ImageSource",
    read: "Callable[[int], np.ndarray]",
    neighbours: "Nearest",
    order: str,
    num: int,
    title: str,
) -> "np.ndarray":
    """Return generated images, each above its neighbours, uint8 [3, H, W]."""
    from erk.generation.sheets import SheetCell, captioned_sheet
    from metrics.images import read_image
    from metrics.selection import seeds_of

    score = neighbours.ratios if order == "ratio" else neighbours.distances[:, 0]
    seeds = seeds_of(generated)
    columns = []
    for i in score.argsort(stable=True)[:num].tolist():
        name = f"seed {seeds[i]}" if seeds else Path(generated.names[i]).stem[:10]
        column = [SheetCell(read_image(generated, i).transpose(2, 0, 1), name)]
        pairs = zip(neighbours.indices[i].tolist(), neighbours.distances[i].tolist(), strict=True)
        columns.append(column + [SheetCell(read(j), f"{distance:.4g}") for j, distance in pairs])
    names = ["generated", *(f"nearest {j + 1}" for j in range(neighbours.indices.shape[1]))]
    return captioned_sheet(columns, names, title)


def _summary(neighbours: "Nearest", space: str) -> str:
    from numpy import median

    nearest = neighbours.distances[:, 0]
    equal = f", {int((nearest == 0).sum())} equal to one" if space == "pixels" else ""
    return (
        f"{len(nearest)} images, distances in {space}: nearest {median(nearest):.4g} in the "
        f"median, {nearest.min():.4g} at least; {int(neighbours.is_copy.sum())} copied (nearest "
        "less than 1/3 as far as the second nearest), smallest ratio "
        f"{neighbours.ratios.min():.3f}{equal}"
    )


if __name__ == "__main__":
    main()

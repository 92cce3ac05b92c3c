"""The command `prepare-imagenet`: crop ImageNet's images and pack them into a zip of PNGs."""

import os
from pathlib import Path
from typing import Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command
from erk.io.atomic import check_target

LARGEST = 4096  # pixels of --size: 48 MiB per image in memory


@command(
    "erk prepare-imagenet --source ILSVRC2012_img_val.tar --split val --dest val512.zip",
    "erk prepare-imagenet --source train.zip --dest 50k.zip --size 64 --per-class 50",
)
@cloup.option_group(
    "Images",
    cloup.option("--source", metavar="PATH", required=True,
                 help="Folder, uncompressed tar (of tars) or zip, one folder per class."),
    cloup.option("--split", type=click.Choice(["train", "val"]), help="Only ImageNet's training or "
                 "validation images, recognised by their names; the paper's precision and recall "
                 "use val."),
    cloup.option("--per-class", type=int, metavar="N",
                 help="Only the first N images of each class."),
    cloup.option("--max-images", type=int, metavar="N", help="Only the first N images in all."),
    cloup.option("--skip-corrupt", is_flag=True, help="Skip images that cannot be decoded."),
)  # fmt: skip
@cloup.option_group(
    "Archive",
    cloup.option("--dest", metavar="FILE.zip", required=True, help="The archive to write."),
    cloup.option("--size", type=int, default=512, help="Width and height of the images in pixels."),
    shared.overwrite_option,
    cloup.option("--workers", type=int, metavar="N",
                 help="Threads that decode and encode.  [default: one per core]"),
)  # fmt: skip
def main(source: str, dest: str, overwrite: bool, **options: Any) -> None:
    """Crop and scale images as ADM and EDM2 do and pack them as EDM does.

    The archive holds the real images of an evaluation. The source has one folder of images per
    class, or in a tar one tar per class. Without them, as in ImageNet's validation set, the archive
    has no labels; precision and recall need none.
    """
    target = Path(dest)
    if target.suffix != ".zip":
        raise ValueError(f"the archive {target} must end in .zip: rename it")
    check_target(target, source)
    shared.refuse_existing(target, overwrite)
    for name, value in options.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if options["size"] > LARGEST:
        raise ValueError(f"--size must be at most {LARGEST}, not {options['size']}")
    from erk.commands.imagenet_archive import prepare

    if options["workers"] is None:
        options["workers"] = os.cpu_count() or 1
    click.echo(prepare(Path(source), target, **options))


if __name__ == "__main__":
    main()

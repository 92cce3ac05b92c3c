"""The command `make-reference`: compute the statistics of real images for evaluate --ref."""

from pathlib import Path
from typing import Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command


@command(
    "erk make-reference --images imagenet-512.zip --dest imagenet512.npz --protocol erk-paper",
    "torchrun --nproc-per-node 8 -m erk make-reference --images real.zip --dest mine.npz",
)
@shared.subset_options(
    cloup.option("--images", metavar="PATH", required=True, help="Folder, .zip or .npz of images."),
)
@cloup.option_group(
    "Reference",
    cloup.option("--dest", metavar="FILE.npz", required=True, help="The reference to write."),
    cloup.option("--extractors", default="inception,dinov2", metavar="LIST", help="Networks: "
                 "some of inception, inception-spatial, dinov2, dinov2-pil, vgg16, digits, mnist."),
    cloup.option("--features", is_flag=True,
                 help="Also store the features, for precision and recall."),
    cloup.option("--protocol", metavar="NAME", help="Protocol in which the reference is used.  "
                 "[default: from the extractors]"),
    shared.overwrite_option,
)  # fmt: skip
@shared.feature_options()
def main(**options: Any) -> None:
    """Write a reference file for erk evaluate --ref FILE.npz from real images.

    For several GPUs or CPU cores use torchrun, as in the second example. After an interruption
    the same command resumes.
    """
    dest = Path(options["dest"])
    if dest.suffix != ".npz":
        raise ValueError(f"a reference is a .npz file: call it {dest.with_suffix('.npz')}")
    from erk.io.atomic import check_target
    from metrics.images import open_images

    check_target(dest, options["images"])
    shared.refuse_existing(dest, options["overwrite"])
    source = open_images(options["images"])  # before torch, whose import takes seconds

    from erk.runtime.distributed import pick_device
    from metrics.build_reference import build_reference, extraction_plan
    from metrics.protocols import find_protocol
    from metrics.selection import subset

    if options["protocol"] is not None:
        find_protocol(options["protocol"])
    names = [name.strip() for name in options["extractors"].split(",")]
    source = subset(source, options["num"], options["seed"])
    passed = ("allow_random", "cache", "batch", "skip_corrupt", "offline")
    for note in source.notes:
        click.echo(f"{source.path}: {note}", err=True)
    plan = extraction_plan(
        names,
        shared.weights_of(options["weights"]),
        pick_device(options["device"]),
        **{name: options[name] for name in passed},
    )
    line = build_reference(
        source, dest, plan, names,
        protocol=options["protocol"], keep_features=options["features"],
    )  # fmt: skip
    if line is not None:
        click.echo(line)


if __name__ == "__main__":
    main()

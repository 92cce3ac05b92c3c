"""Make a reference of real images: their mean and covariance under one or more extractors.

    erk make-reference --images imagenet-512.zip --extractors inception,dinov2 \\
        --protocol erk-paper --dest imagenet512.npz
    torchrun --nproc-per-node 8 erk make-reference ...

The images are shown to the networks once; features are kept in the cache, so a killed run goes on.
Memory does not grow with the number of images, unless --features keeps them all.
"""

from pathlib import Path
from typing import Any

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.runtime.distributed import gather, join, pick_device
from erk.runtime.memory import keep_freed_memory
from metrics.extraction import Pass, assemble, first_shape, image_chunks, work
from metrics.extractors import NAMES, load_extractor
from metrics.extractors.weights import refuse_random
from metrics.images import open_images, subset
from metrics.protocols import find_protocol
from metrics.reference_files import write_reference
from metrics.references import Statistics
from metrics.statistics import Moments
from metrics.store import default_folder

SPATIAL = "inception-spatial"
MADE_FOR = {
    ("inception",): "edm",
    ("dinov2", "inception"): "edm2",
    ("inception", SPATIAL): "adm",
    ("dinov2-pil",): "dgm-eval",
    ("dinov2",): "kynkaat-dinov2",
    ("digits",): "digits",
}


@click.command(context_settings=CONTEXT)
@click.option("--images", metavar="PATH", required=True, help="Folder, .zip or .npz of images.")
@click.option("--dest", metavar="FILE.npz", required=True, help="Where the reference goes.")
@click.option("--extractors", default="inception,dinov2", metavar="LIST",
              help=f"Some of {', '.join(NAMES)}, {SPATIAL}.")  # fmt: skip
@click.option("--features", is_flag=True, help="Keep the features, for precision and recall.")
@click.option("--protocol", metavar="NAME", help="The protocol that it is made for.  "
              "[default: by the extractors]")  # fmt: skip
@click.option("--num", type=int, metavar="N", help="Use N of the images.  [default: all]")
@click.option("--seed", type=int, default=0, help="Which N: drawn as EDM2 draws them.")
@click.option("--weights", multiple=True, metavar="NAME=FILE", help="Weights of an extractor.")
@click.option("--allow-random-weights", "allow_random", is_flag=True,
              help="For trials: numbers then measure nothing.")  # fmt: skip
@click.option("--batch", default=64, help="Images per network call.")
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--cache", metavar="DIR", help="Where features are kept.  [default: in ERK_CACHE]")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda", "mps"]),
              help="Where to compute; auto: CUDA, then MPS, then the CPU.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@clean_exit
def main(**options: Any) -> None:
    """Make a reference file for evaluate.py --ref FILE.npz from real images."""
    dest = Path(options["dest"])
    if dest.suffix != ".npz":
        raise ValueError(f"a reference is a .npz file: call it {dest.with_suffix('.npz')}")
    if options["protocol"] is not None:
        find_protocol(options["protocol"])
    names = [name.strip() for name in options["extractors"].split(",")]
    source = subset(open_images(options["images"]), options["num"], options["seed"])
    how = _how(names, options)
    height, width, _ = first_shape(source, options["skip_corrupt"])
    with join(pick_device(options["device"])) as world:
        chunks = image_chunks(source, how)(world.rank, world.size)
        own = [(c.start, c.key, c.size) for c in work(how, chunks, world, len(source.names))]
        everything = sorted(chunk for share in gather(world, own) for chunk in share)
    if world.rank > 0:
        return
    statistics, kept = _statistics(how, everything, names, options["features"])
    known = source.labels if options["features"] else None
    protocol = options["protocol"] or MADE_FOR.get(tuple(sorted(statistics)))
    write_reference(
        dest,
        statistics,
        protocol=protocol,
        labels=None if known is None else torch.tensor(known)[kept],
        image_size=height if height == width else None,
    )
    made = f"{len(kept)} images of {width}x{height}, {', '.join(statistics)}"
    click.echo(f"{dest}: {made}, protocol {protocol or 'unknown (evaluate.py needs --protocol)'}")


def _how(names: list[str], options: dict[str, Any]) -> Pass:
    weights = dict(text.partition("=")[::2] for text in options["weights"])
    refuse_random(weights, options["allow_random"])
    place, folder = pick_device(options["device"]), options["cache"]
    wanted: dict[str, list[str]] = {}
    for name in names:
        fields = wanted.setdefault(name.removesuffix("-spatial"), ["features"])
        fields += ["spatial"] if name == SPATIAL else []
    extractors = {
        name: load_extractor(name, str(place), weights.get(name), options["offline"])
        for name in wanted
    }
    if place.type == "cpu":
        keep_freed_memory()
    store = default_folder() if folder is None else Path(folder)
    return Pass(extractors, wanted, store, options["batch"], options["skip_corrupt"], place)


def _statistics(
    how: Pass, chunks: list[tuple[int, str, int]], names: list[str], features: bool
) -> tuple[dict[str, Statistics], list[int]]:
    """Statistics by name, and the places of the images that were read; a chunk at a time."""
    moments: dict[str, Moments] = {}
    rows: dict[str, list[torch.Tensor]] = {}
    kept: list[int] = []
    for chunk in chunks:
        found = assemble(how, [chunk])
        kept += found.kept.tolist()
        for name, fields in how.wanted.items():
            for field in fields:
                part = getattr(found.features[name], field)
                key = SPATIAL if field == "spatial" else name
                if key not in names:
                    continue
                moments.setdefault(key, Moments(part.shape[1])).add(part)
                if features:
                    rows.setdefault(key, []).append(part)
    made = {}
    for key, sums in moments.items():
        extractor = how.extractors[key.removesuffix("-spatial")]
        made[key] = Statistics(
            sums.mean,
            sums.cov,
            sums.n,
            torch.cat(rows[key]) if features else None,
            extractor.sha256,
        )
    return made, kept


if __name__ == "__main__":
    main()

"""The evaluator by its parts: extractors in each precision, resizes, decoding; and what FD makes
of a lower precision.

    python -m scripts.bench.evaluator                      # minutes on one core
    python -m scripts.bench.evaluator --extractor digits --sets 40 --rounds 1   # a trial

Extractors have random weights (their time does not depend on them), except that of digits. "FD
apart" is |FD / FD in fp32 - 1| of a second set of images in that precision, against the fp32
statistics of the first. Writes results/bench/evaluator.json and .md.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.images import png_bytes, read_png
from erk.runtime.distributed import pick_device
from erk.runtime.memory import keep_freed_memory
from metrics.distances import frechet_distance
from metrics.extractors import Extractor, load_extractor
from metrics.extractors.resize import bicubic, bicubic_fixed_point, bicubic_pil, bilinear_tf1
from metrics.references import real_digits
from metrics.statistics import Moments
from scripts.bench.paired import (
    OUT,
    ROUNDS,
    THREADS,
    Row,
    in_turns,
    photographs,
    report,
    summary,
    use_threads,
)

RESIZES = {"TensorFlow-1 bilinear to 299": functools.partial(bilinear_tf1, size=299),
           "float bicubic to 224": functools.partial(bicubic, size=224),
           "Pillow's bicubic to 224": functools.partial(bicubic_pil, size=224),
           "the same, as products": functools.partial(bicubic_fixed_point, size=224)}  # fmt: skip
LOWER = {"cpu": ("fp16", "bf16"), "cuda": ("tf32", "fp16", "bf16"), "mps": ("fp16",)}
BATCH = 64
SETS = {"digits": 1500, "inception": 96, "vgg16": 16, "dinov2": 8}  # images of each, for FD


def extractors_of(name: str, device: str) -> dict[str, Extractor]:
    """By precision; fp32 is ours."""
    weights = None if name == "digits" else "random:0"
    return {
        precision: load_extractor(name, device, weights, precision=precision)
        for precision in ("fp32", *LOWER[device])
    }


def pictures(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Two sets of n images uint8 [n, C, H, W] that differ: of digits, or like photographs."""
    if name != "digits":
        both = torch.from_numpy(photographs(2 * n, 128))
        return both[:n], (both[n:].float() * 0.95 + 8).byte()
    real = real_digits()[0]
    few = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:n]]
    noise = torch.randint(-40, 41, few.shape, generator=torch.Generator().manual_seed(1))
    return real, (few + noise).clamp(0, 255).byte()


def moments(extractor: Extractor, images: Tensor) -> tuple[Tensor, Tensor]:
    found = Moments(extractor.feature_dim)
    for part in images.split(BATCH):
        found.add(extractor(part).features.cpu())
    return found.mean, found.cov


def fd_apart(found: dict[str, Extractor], name: str, n: int) -> dict[str, Row]:
    """By precision: FD of the second set, and how far it is from that in fp32."""
    first, second = pictures(name, n)
    real = moments(found["fp32"], first)
    fds = {
        key: frechet_distance(real=real, generated=moments(extractor, second))
        for key, extractor in found.items()
    }
    return {
        key: {"FD images": n, "FD": fd, "FD apart": abs(fd / fds["fp32"] - 1)}
        for key, fd in fds.items()
    }


def finished(work: Callable[[], Any], device: str) -> None:
    """Do the work to its end, on a GPU, too."""
    work()
    if device == "cuda":
        torch.cuda.synchronize()


def timed(what: str, codes: dict[str, Callable[[], Any]], images: Tensor, rounds: int,
          device: str) -> Iterator[tuple[str, Row]]:  # fmt: skip
    """One row per code, the first of which is ours."""
    named = {("ours" if i == 0 else name): code for i, (name, code) in enumerate(codes.items())}
    for code in named.values():
        finished(code, device)  # what a first call loads
    runs = in_turns({k: functools.partial(finished, c, device) for k, c in named.items()}, rounds)
    for name, figures in zip(codes, summary(runs).values(), strict=True):
        n = len(images)
        told = {"what": what, "code": name, "images": n, "MB in": images.nbytes / n / 1e6}
        yield name, told | {"images/s": n / figures["seconds"]} | figures


def extraction(name: str, n: int, sets: int, rounds: int, device: str) -> list[Row]:
    """An extractor in every precision."""
    found = extractors_of(name, device)
    images = torch.from_numpy(photographs(n, 512)) if name != "digits" else real_digits()[0][:n]
    images = images.to(device)
    with FlopCounterMode(display=False) as counter:
        found["fp32"](images[:1])
    gflop = counter.get_total_flops() / 1e9
    codes = {
        key: functools.partial(lambda one: [one(part) for part in images.split(BATCH)], extractor)
        for key, extractor in found.items()
    }
    rows = []
    apart = fd_apart(found, name, sets)
    for key, row in timed(name, codes, images, rounds, device):
        speed = {"GFLOP": gflop, "GFLOP/s": gflop * row["images/s"]}
        rows.append(row | speed | apart[key])
    return rows


def preparation(n: int, rounds: int, device: str) -> list[Row]:
    """Decoding PNG files and resizing; each against the first."""
    host = torch.from_numpy(photographs(n, 512))
    files, images = [png_bytes(image) for image in host.numpy()], host.to(device)
    codes = {name: functools.partial(resize, images) for name, resize in RESIZES.items()}
    decode = {"PNG to uint8, one thread": lambda: [read_png(file) for file in files]}
    rows = [row for _, row in timed("resize", codes, images, rounds, device)]
    return rows + [row for _, row in timed("decode", decode, host, rounds, device)]


@click.command(context_settings=CONTEXT)
@click.option("--extractor", "names", multiple=True,
              default=tuple(SETS), help="May be repeated.")  # fmt: skip
@click.option("--images", "n", default=2, help="Images of 512x512 that are timed.")
@click.option("--sets", type=int, help="Images in each of FD's two sets.  [default: by network]")
@click.option("--device", default="cpu", help="cpu, cuda or mps.")
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(names: tuple[str, ...], n: int, sets: int | None, device: str, rounds: int, threads: int,
         out: Path) -> None:  # fmt: skip
    """Time the evaluator's parts."""
    use_threads(threads)
    keep_freed_memory()  # as the commands do
    kind = pick_device(device).type
    rows = preparation(n, rounds, kind)
    for name in names:
        rows += extraction(name, n, sets or SETS[name], rounds, kind)
    report("evaluator", rows, ["pillow", "timm", "torchvision"], out, kind)


if __name__ == "__main__":
    main()

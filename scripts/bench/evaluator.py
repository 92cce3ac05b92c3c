"""Parts of the evaluator: extractors by precision and layout, resizes, decoding; errors of FD.

    python -m scripts.bench.evaluator                      # minutes on one core
    python -m scripts.bench.evaluator --extractor digits --sets 40 --rounds 1   # a trial

Extractors have random weights (their time does not depend on them), except that of digits. "FD
error" is |FD / FD in fp32 - 1| of a second set of images in that precision, against the fp32
statistics of the first.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from erk.generation.images import png_bytes, read_png
from erk.runtime.memory import keep_freed_memory
from metrics.distances import frechet_distance
from metrics.extractors import Extractor, load_extractor
from metrics.extractors.network import LAYOUTS, layout_of
from metrics.extractors.resize import bicubic, bicubic_fixed_point, bicubic_pil, bilinear_tf1
from metrics.references import real_images
from metrics.statistics import Moments
from scripts.bench.paired import Row, Setup, bench, in_turns, summary, synchronize
from scripts.bench.photographs import photographs

RESIZES = {
    "TensorFlow-1 bilinear to 299": functools.partial(bilinear_tf1, size=299),
    "float bicubic to 224": functools.partial(bicubic, size=224),
    "Pillow's bicubic to 224": functools.partial(bicubic_pil, size=224),
    "the same, as matrix products": functools.partial(bicubic_fixed_point, size=224),
}
LOWER = {"cpu": ("fp16", "bf16"), "cuda": ("tf32", "fp16", "bf16"), "mps": ("fp16",)}
BATCH = 64
RELAID = "fp32, in the other layout"
SETS = {"digits": 1500, "inception": 96, "vgg16": 16, "dinov2": 8}  # images of each, for FD


def extractors_of(name: str, device: str) -> dict[str, Extractor]:
    """Load an extractor in every precision of the device; fp32 is the default."""
    weights = None if name == "digits" else "random:0"
    extractors = {
        precision: load_extractor(name, device, weights, precision=precision)
        for precision in ("fp32", *LOWER[device])
    }
    if name in ("inception", "vgg16"):
        extractors[RELAID] = in_other_layout(name, device, weights)
    return extractors


def in_other_layout(name: str, device: str, weights: str | None) -> Extractor:
    """Load an extractor with the memory layout of images and kernels that it does not use."""
    is_last = layout_of(name, device) == torch.channels_last
    other = torch.contiguous_format if is_last else torch.channels_last
    with patch.dict(LAYOUTS, {(name, device): other}):
        extractor: Any = load_extractor(name, device, weights)
    prepare = extractor.prepare
    relaid: Extractor = extractor._replace(
        prepare=lambda images: prepare(images).contiguous(memory_format=other)
    )
    return relaid


def two_sets(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Return two different sets of images uint8 [n, C, H, W]: digits, or like photographs."""
    if name != "digits":
        both = torch.from_numpy(photographs(2 * n, 128))
        return both[:n], (both[n:].float() * 0.95 + 8).byte()
    real = real_images("digits")[0]
    subset = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:n]]
    noise = torch.randint(-40, 41, subset.shape, generator=torch.Generator().manual_seed(1))
    return real, (subset + noise).clamp(0, 255).byte()


def moments(extractor: Extractor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D, D] of the images' features."""
    moments = Moments(extractor.feature_dim)
    for part in images.split(BATCH):
        moments.add(extractor(part).features.cpu())
    return moments.mean, moments.cov


def fd_errors(extractors: dict[str, Extractor], name: str, n: int) -> dict[str, Row]:
    """Return, per precision, FD of the second set and its relative error against fp32."""
    first, second = two_sets(name, n)
    real = moments(extractors["fp32"], first)
    fds = {
        key: frechet_distance(real=real, generated=moments(extractor, second))
        for key, extractor in extractors.items()
    }
    return {
        key: {"FD images": n, "FD": fd, "FD error": abs(fd / fds["fp32"] - 1)}
        for key, fd in fds.items()
    }


def run(code: Callable[[], Any], device: str) -> None:
    """Run code and wait for the device."""
    code()
    synchronize(device)


def timed(setup: Setup, part: str, codes: Mapping[str, Callable[[], Any]], images: Tensor
          ) -> Iterator[tuple[str, Row]]:  # fmt: skip
    """Yield (name, row) per code; the first is the reference of the ratios."""
    named = {
        "ours" if i == 0 else name: functools.partial(run, code, setup.device)
        for i, (name, code) in enumerate(codes.items())
    }
    for code in named.values():
        code()  # warm-up
    n = len(images)
    times = summary(in_turns(named, setup.rounds)).values()
    for name, row in zip(codes, times, strict=True):
        columns = {"what": part, "code": name, "images": n, "MB in": images.nbytes / n / 1e6}
        yield name, columns | {"images/s": n / row["seconds"]} | row


def extraction(setup: Setup, name: str, n: int, sets: int) -> list[Row]:
    """Time an extractor in every precision."""
    extractors = extractors_of(name, setup.device)
    is_digits = name == "digits"
    images = real_images(name)[0][:n] if is_digits else torch.from_numpy(photographs(n, 512))
    images = images.to(setup.device)
    with FlopCounterMode(display=False) as counter:
        extractors["fp32"](images[:1])
    gflop = counter.get_total_flops() / 1e9
    codes = {
        key: functools.partial(lambda one: [one(part) for part in images.split(BATCH)], extractor)
        for key, extractor in extractors.items()
    }
    rows = []
    errors = fd_errors(extractors, name, sets)
    for key, row in timed(setup, name, codes, images):
        speed = {"GFLOP": gflop, "GFLOP/s": gflop * row["images/s"]}
        rows.append(row | speed | errors[key])
    return rows


def preparation(setup: Setup, n: int) -> list[Row]:
    """Time decoding of PNG files, and resizes relative to the first."""
    host = torch.from_numpy(photographs(n, 512))
    files, images = [png_bytes(image) for image in host.numpy()], host.to(setup.device)
    codes = {name: functools.partial(resize, images) for name, resize in RESIZES.items()}
    decode = {"PNG to uint8, one thread": lambda: [read_png(file) for file in files]}
    rows = [row for _, row in timed(setup, "resize", codes, images)]
    return rows + [row for _, row in timed(setup, "decode", decode, host)]


@bench(
    click.option("--extractor", "names", type=click.Choice(list(SETS)), multiple=True,
                 default=tuple(SETS), help="Network; may be repeated."),
    click.option("--images", "n", default=2, help="Images of 512x512 that are timed."),
    click.option("--sets", type=int,
                 help="Images in each of FD's two sets.  [default: by network]"),
    packages=["pillow", "timm", "torchvision"],
)  # fmt: skip
def main(setup: Setup, names: tuple[str, ...], n: int, sets: int | None) -> Iterator[Row]:
    """Time the evaluator's parts."""
    keep_freed_memory()  # as the commands do
    yield from preparation(setup, n)
    for name in names:
        yield from extraction(setup, name, n, sets or SETS[name])


if __name__ == "__main__":
    main()

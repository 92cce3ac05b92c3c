"""erk evaluate from image files to results, against torch-fidelity: images per second.

    python -m scripts.bench.evaluation                                   # minutes on one core
    python -m scripts.bench.evaluation --device cuda --images 50000 --rounds 1 --threads 16

Images are PNG files of 512 x 512 like photographs. Weights are random, which does not change the
time, and the same for both. FID and IS are compared with torch-fidelity, against a known reference.
It sets no switch of PyTorch, so on CUDA its convolutions use TF32, as for its users; ours do not.
CPU seconds of its data loader's processes are not counted; it runs in a process that keeps freed
memory, as ours does. Precision and recall use as many real images.
"""

import functools
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
import torch_fidelity
from torch.utils.flop_counter import FlopCounterMode

from erk.commands import evaluate, make_reference
from erk.generation.images import png_bytes
from metrics.extractors import dinov2, inception, load_extractor, vgg16
from metrics.extractors.weights import random_state
from scripts.bench.paired import (
    FIVE,
    Row,
    Setup,
    as_released,
    bench,
    in_turns,
    quietly,
    summary,
)
from scripts.bench.photographs import photographs

SIDE = 512
DRAWN = 64  # distinct images; the others are these, shifted
BATCH = 64  # images per call of a network, for both codes
FEW = "fid,is"
NETWORKS = {FEW: ["inception"], FIVE: ["inception", "dinov2", "vgg16"]}


def write_images(folder: Path, n: int, shift: int) -> None:
    """Write n PNG files, the first shifted by `shift` columns."""
    folder.mkdir()
    drawn = photographs(min(n, DRAWN), SIDE)

    def one(i: int) -> None:
        image = np.roll(drawn[i % DRAWN], (i // DRAWN, shift), (1, 2))
        (folder / f"{i:06d}.png").write_bytes(png_bytes(image))

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(n)))


def write_weights(folder: Path, all_metrics: bool) -> None:
    """Write random weights in the published formats; torch-fidelity reads Inception's as well."""
    states = {"inception": inception.calibrated_state(inception.shapes(), 0)}
    if all_metrics:
        states["dinov2"] = random_state(dinov2.shapes(dinov2.ARCHITECTURE), 0)
        states["vgg16"] = random_state(vgg16.shapes(), 0)
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")


def weights_of(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the --weights options of erk evaluate and erk make-reference."""
    files = [f"{name}={folder / name}.pth" for name in names]
    return [word for file in files for word in ("--weights", file)]


def ours(folder: Path, metrics: str, device: str, cache: Path | None = None) -> None:
    """Run erk evaluate with an empty feature cache, or with the given one."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        words = [
            *("--images", folder / "generated", "--ref", folder / "reference.npz"),
            *("--protocol", "erk-paper", "--metrics", metrics, "--device", device),
            *("--batch", BATCH, "--groups", 1, "--cache", cache or fresh),
            *("--json", Path(fresh) / "row.json", *weights_of(folder, NETWORKS[metrics])),
            *(("--real", folder / "real") if "precision" in metrics else ()),
        ]
        quietly(lambda: evaluate.main([str(word) for word in words], standalone_mode=False))


def theirs(folder: Path, device: str) -> None:
    """Run torch-fidelity's FID and IS on the same files and weights."""
    options = {
        "input1": str(folder / "generated"), "input2": str(folder / "real"), "fid": True,
        "isc": True, "cuda": device == "cuda", "batch_size": BATCH, "verbose": False,
        "feature_extractor_weights_path": str(folder / "inception.pth"),
        "input2_cache_name": "real", "cache_root": str(folder / "torch-fidelity-cache"),
    }  # fmt: skip
    with as_released():
        quietly(lambda: torch_fidelity.calculate_metrics(**options))


def prepare(folder: Path, n: int, device: str, all_metrics: bool) -> None:
    """Write images, weights and a reference."""
    extractors = ["inception", "dinov2"] if all_metrics else ["inception"]
    write_images(folder / "generated", n, 0)
    write_images(folder / "real", n, SIDE // 2)
    write_weights(folder, all_metrics)
    words = [
        *("--images", folder / "real", "--dest", folder / "reference.npz", "--overwrite"),
        *("--device", device),
        *("--extractors", ",".join(extractors), "--protocol", "erk-paper"),
        *("--cache", folder / "cache", *weights_of(folder, extractors)),
    ]
    quietly(lambda: make_reference.main([str(word) for word in words], standalone_mode=False))


def compare(setup: Setup, folder: Path, n: int, all_metrics: bool) -> list[Row]:
    """Return one row per code; "ours" starts with an empty feature cache."""
    run = functools.partial(ours, folder, device=setup.device)
    peer = functools.partial(theirs, folder, setup.device)
    peer()  # caches its statistics of the real images
    run(FEW)
    tables = {FEW: {"ours": functools.partial(run, FEW), "torch-fidelity": peer}}
    if all_metrics:
        cached = functools.partial(run, FIVE, cache=folder / "again")
        cached()
        tables[FIVE] = {"ours": functools.partial(run, FIVE), "ours, features cached": cached}
    rows: list[Row] = []
    for metrics, codes in tables.items():
        for name, times in summary(in_turns(codes, setup.rounds)).items():
            row = {"metrics": metrics, "code": name, "images": n}
            row |= {"images/s": n / times["seconds"]} | times
            rows.append(row | work_of(folder, metrics))
    return rows


def work_of(folder: Path, metrics: str) -> Row:
    """Return operations and bytes per generated image, those of its real image included."""
    gflop = 0.0
    for name in NETWORKS[metrics]:
        extractor = load_extractor(name, weights=f"{folder / name}.pth")
        with FlopCounterMode(display=False) as counter:
            extractor(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
        gflop += counter.get_total_flops() / 1e9 * (2 if name == "vgg16" else 1)
    files = [*(folder / "generated").iterdir()]
    return {"GFLOP": gflop, "MB in": sum(file.stat().st_size for file in files) / len(files) / 1e6}


@bench(
    click.option("--images", "n", default=64, type=click.IntRange(10),
                 help="Generated images, and as many real ones."),
    click.option("--fid-only", is_flag=True, help="FID and IS alone, not all five metrics."),
    packages=["torch-fidelity", "timm", "pillow"],
)  # fmt: skip
def main(setup: Setup, n: int, fid_only: bool) -> list[Row]:
    """Time erk evaluate from end to end."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), n, setup.device, not fid_only)
        return compare(setup, Path(folder), n, not fid_only)


if __name__ == "__main__":
    main()

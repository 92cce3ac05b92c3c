"""evaluate.py from files to a row of results, beside torch-fidelity: images per second.

    python -m scripts.bench.evaluation                                   # minutes on one core
    python -m scripts.bench.evaluation --device cuda --images 50000 --rounds 1 --threads 16

Writes results/bench/evaluation.json and .md. Images are PNG files of 512 x 512 like photographs;
weights are random, which does not change the time, and the same for both. FID and IS, against a
reference known from before, are what torch-fidelity is compared at; its files are read by processes
of their own, whose CPU seconds are not among its, and it runs in a process that keeps freed memory,
as ours does. Precision and recall look at as many real images.
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
from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.images import png_bytes
from erk.runtime.precision import NONE, tf32_only
from metrics.extractors import dinov2, inception, load_extractor, vgg16
from metrics.extractors.weights import random_state
from scripts.bench.networks import DEVICE
from scripts.bench.paired import (
    OUT,
    ROUNDS,
    THREADS,
    Row,
    in_turns,
    photographs,
    quietly,
    report,
    summary,
    use_threads,
)

SIDE = 512
DRAWN = 64  # different ones; the others are the same ones shifted
BATCH = 64  # images per call of a network, for both
FEW, ALL = "fid,is", "fid,fd_dinov2,precision,recall,is"
NETWORKS = {FEW: ["inception"], ALL: ["inception", "dinov2", "vgg16"]}


def write_images(folder: Path, n: int, shift: int) -> None:
    """n PNG files; `shift` by how many columns the first is shifted."""
    folder.mkdir()
    drawn = photographs(min(n, DRAWN), SIDE)

    def one(i: int) -> None:
        image = np.roll(drawn[i % DRAWN], (i // DRAWN, shift), (1, 2))
        (folder / f"{i:06d}.png").write_bytes(png_bytes(image))

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(n)))


def write_weights(place: Path, every: bool) -> None:
    """Random ones, in files as published; torch-fidelity reads Inception's as well."""
    states = {"inception": inception.calibrated_state(inception.shapes(), 0)}
    if every:
        states["dinov2"] = random_state(dinov2.shapes(dinov2.ARCHITECTURE), 0)
        states["vgg16"] = random_state(vgg16.shapes(), 0)
    for name, state in states.items():
        torch.save(state, place / f"{name}.pth")


def weights_of(place: Path, names: Sequence[str]) -> list[str]:
    """Options of evaluate.py and of make_reference.py."""
    files = [f"{name}={place / name}.pth" for name in names]
    return [word for file in files for word in ("--weights", file)]


def ours(place: Path, metrics: str, device: str, cache: Path | None = None) -> None:
    """evaluate.py; features of no earlier run are used unless `cache` has them."""
    with tempfile.TemporaryDirectory(dir=place) as fresh:
        words = [
            *("--images", place / "generated", "--ref", place / "reference.npz"),
            *("--protocol", "erk-paper", "--metrics", metrics, "--device", device),
            *("--batch", BATCH, "--groups", 1, "--cache", cache or fresh),
            *("--json", Path(fresh) / "row.json", *weights_of(place, NETWORKS[metrics])),
            *(("--real", place / "real") if "precision" in metrics else ()),
        ]
        quietly(lambda: evaluate.main([str(word) for word in words], standalone_mode=False))


def theirs(place: Path, device: str) -> None:
    """torch-fidelity: FID and IS of the same files with the same weights, without TF32 as ours."""
    options = {
        "input1": str(place / "generated"), "input2": str(place / "real"), "fid": True,
        "isc": True, "cuda": device == "cuda", "batch_size": BATCH, "verbose": False,
        "feature_extractor_weights_path": str(place / "inception.pth"),
        "input2_cache_name": "real", "cache_root": str(place / "kept of torch-fidelity"),
    }  # fmt: skip
    with tf32_only(NONE):
        quietly(lambda: torch_fidelity.calculate_metrics(**options))


def prepare(place: Path, n: int, device: str, every: bool) -> None:
    """Images, weights and a reference."""
    known = ["inception", "dinov2"] if every else ["inception"]
    write_images(place / "generated", n, 0)
    write_images(place / "real", n, SIDE // 2)
    write_weights(place, every)
    words = [
        *("--images", place / "real", "--dest", place / "reference.npz", "--device", device),
        *("--extractors", ",".join(known), "--protocol", "erk-paper", "--cache", place / "kept"),
        *weights_of(place, known),
    ]
    quietly(lambda: make_reference.main([str(word) for word in words], standalone_mode=False))


def compare(n: int, every: bool, device: str, rounds: int) -> list[Row]:
    """One row per code; the first for the same metrics is ours, without features of before."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, n, device, every)
        peer = functools.partial(theirs, place, device)
        peer()  # keeps what it knows of the real images
        ours(place, FEW, device)
        tables = {FEW: {"ours": functools.partial(ours, place, FEW, device),
                        "torch-fidelity": peer}}  # fmt: skip
        if every:
            again = functools.partial(ours, place, ALL, device, place / "again")
            again()
            tables[ALL] = {"ours": functools.partial(ours, place, ALL, device),
                           "ours, features kept": again}  # fmt: skip
        for metrics, codes in tables.items():
            for name, figures in summary(in_turns(codes, rounds)).items():
                speed = {"images/s": n / figures["seconds"]}
                told = {"metrics": metrics, "code": name, "images": n}
                rows.append(told | speed | figures | work_of(place, metrics))
    return rows


def work_of(place: Path, metrics: str) -> Row:
    """Operations and bytes per generated image, those of its real one included."""
    gflop = 0.0
    for name in NETWORKS[metrics]:
        extractor = load_extractor(name, weights=f"{place / name}.pth")
        with FlopCounterMode(display=False) as counter:
            extractor(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
        gflop += counter.get_total_flops() / 1e9 * (2 if name == "vgg16" else 1)
    files = [*(place / "generated").iterdir()]
    return {"GFLOP": gflop, "MB in": sum(file.stat().st_size for file in files) / len(files) / 1e6}


@click.command(context_settings=CONTEXT)
@click.option("--images", "n", default=64, type=click.IntRange(10), help="As many are real ones.")
@click.option("--fid-only", is_flag=True, help="FID and IS alone, not all five metrics.")
@DEVICE
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(n: int, fid_only: bool, device: str, rounds: int, threads: int, out: Path) -> None:
    """Time evaluate.py from end to end."""
    use_threads(threads)
    rows = compare(n, not fid_only, device, rounds)
    report("evaluation", rows, ["torch-fidelity", "timm", "pillow"], out, device)


if __name__ == "__main__":
    main()

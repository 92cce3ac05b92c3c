"""Snapshots of a training run, and their sums: networks averaged over other lengths.

A snapshot is an average of power-function profile, as EDM2's training stores them at two widths:
NAME-KIMG-STD.pkl, or safetensors whose metadata says training: {images, ema_std}. The sums use the
coefficients of erk/models/ema.py.
"""

import glob
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from erk.io.untrusted import parse_json
from erk.models.checkpoint import Checkpoint, build, read, write_safetensors
from erk.models.ema import MAX_STD, Combination, Profile

SUFFIXES = (".pkl", ".safetensors")


class Snapshot(NamedTuple):
    """A stored average."""

    path: Path
    profile: Profile  # its time in images


class Sum(NamedTuple):
    """A weighted sum of snapshots."""

    checkpoint: Checkpoint
    sha256: tuple[str, ...]  # of the bytes read of each snapshot


def find_snapshots(sources: Sequence[str]) -> list[Snapshot]:
    """Return the snapshots that patterns, files or folders name.

    Files that are themselves such sums are left out. Raises FileNotFoundError for a source without
    a network file, ValueError for a file whose average is unknown or if only sums are named.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        listed: Iterable[Path] = [path]  # an existing file may have [ or * in its name
        if path.is_dir():
            listed = path.iterdir()
        elif not path.exists():
            listed = map(Path, glob.glob(source))
        networks = sorted(name for name in listed if name.suffix in SUFFIXES)
        if not networks:
            raise FileNotFoundError(f"--in {source} names no {' or '.join(SUFFIXES)} file")
        files += networks
    distinct = {path.resolve(): path for path in files}  # one file may have several names
    snapshots = [_snapshot(path) for path in distinct.values()]
    stored = [snapshot for snapshot in snapshots if snapshot is not None]
    if not stored:
        raise ValueError("--in names reconstructions only: give the snapshots of a training")
    return stored


def _snapshot(path: Path) -> Snapshot | None:
    """Return what a file averages, by its metadata, else by its name; None for a reconstruction."""
    metadata, facts = path.with_suffix(".json"), None
    if path.suffix == ".safetensors" and metadata.is_file():
        try:
            content = parse_json(metadata.read_bytes())
            if "snapshots" in content:  # a sum of others, written by `write_sum`
                return None
            training = content.get("training")
            if isinstance(training, dict) and {"images", "ema_std"} <= training.keys():
                facts = float(training["ema_std"]), float(training["images"])
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"{metadata} is not the metadata of a network: restore it") from None
    if facts is not None:
        return _checked(path, *facts)
    name = re.search(r"-(\d+)-(\d\.\d+)$", path.stem)
    if name is None:
        raise ValueError(
            f"{path} does not say what it averages: name it ...-KIMG-STD{path.suffix}, such as "
            "net-0134217-0.050.pkl, or add training: {images, ema_std} to its .json file"
        )
    return _checked(path, float(name[2]), _images_of(int(name[1])))


def _checked(path: Path, std: float, images: float) -> Snapshot:
    """Return a snapshot. Raises ValueError, naming the file, for an impossible width or time."""
    if not (0 < std <= MAX_STD and 0 <= images < math.inf):
        raise ValueError(
            f"{path} averages std {std:g} at {images:g} images, but std must be above 0 and at "
            f"most {MAX_STD:.4f}, images at least 0: correct its name or its .json file"
        )
    return Snapshot(path, Profile(std, images))


def _images_of(kimg: int) -> int:
    """Return the number of training images whose thousands are in a snapshot's name.

    EDM2's batches are powers of 2, so the number is the multiple of 1024 between kimg * 1000 and
    kimg * 1000 + 999: 134217 stands for 2^27. Where there is none, it is kimg * 1000.
    """
    images = (kimg * 1000 + 999) // 1024 * 1024
    return images if images // 1000 == kimg else kimg * 1000


def until(snapshots: Sequence[Snapshot], kimg: float | None) -> list[Snapshot]:
    """Return the snapshots up to the time of an average: what is later is no part of it.

    ``kimg`` is the time of one of the snapshots in thousands of images, or in full thousands as in
    its name; None: the last one. Raises ValueError for any other.
    """
    times = sorted({s.profile.time for s in snapshots if s.profile.time > 0})
    if not times:
        raise ValueError("--in names snapshots of 0 images only: give those of a later time")
    fitting = times[-1:] if kimg is None else [t for t in times if t == round(kimg * 1000, 6)]
    fitting = fitting or [time for time in times if time // 1000 == kimg]
    if len(fitting) != 1:
        known = ", ".join(f"{time / 1000:.9g}" for time in times[-8:])
        raise ValueError(
            f"--kimg {kimg:g} is not the time of one snapshot: choose one of "
            f"{'..., ' if len(times) > 8 else ''}{known}"
        )
    return [snapshot for snapshot in snapshots if 0 < snapshot.profile.time <= fitting[0]]


def sums(
    snapshots: Sequence[Snapshot], plans: Sequence[Combination], dtype: str | None = None
) -> Iterator[Sum]:
    """Yield the sum of each plan; every snapshot is read once and summed in float32.

    Only parameters are averaged; buffers, which never change, are the first snapshot's. `dtype`
    names the stored type of the tensors; None keeps that of the snapshots.
    """
    first, trained, digests = None, set[str](), []
    totals = [dict[str, torch.Tensor]() for _ in plans]
    for i, snapshot in enumerate(tqdm(snapshots, "Reading", mininterval=0.5, unit="net")):
        checkpoint = read(snapshot.path)
        digests.append(checkpoint.sha256)
        if first is None:
            first = checkpoint
            network, _ = build(checkpoint, str(snapshot.path))
            trained = {name for name, _ in network.named_parameters()}
        _check_same(first, checkpoint, snapshots[0].path, snapshot.path)
        for name in trained:
            wide = checkpoint.tensors[name].to(torch.float32)
            for total, plan in zip(totals, plans, strict=True):
                part = wide * plan.coefficients[i].item()
                total[name] = total[name].add_(part) if name in total else part
    assert first is not None
    for total in totals:
        tensors = {n: total.pop(n) if n in trained else t for n, t in first.tensors.items()}
        stored = {
            name: tensor.to(getattr(torch, dtype) if dtype else first.tensors[name].dtype)
            for name, tensor in tensors.items()
        }
        wrong = next((name for name, one in stored.items() if not one.isfinite().all()), None)
        if wrong is not None:
            raise ValueError(
                f"the sum has NaN or infinity in {wrong}: a snapshot has, or the numbers are "
                "beyond its type; look at the snapshots, or give --dtype float32"
            )
        yield Sum(first._replace(tensors=stored), tuple(digests))


def _check_same(first: Checkpoint, other: Checkpoint, first_path: Path, path: Path) -> None:
    shapes = [{n: t.shape for n, t in c.tensors.items()} for c in (first, other)]
    if first.architecture != other.architecture or shapes[0] != shapes[1]:
        raise ValueError(f"{path} is another network than {first_path}: give snapshots of one run")


def write_sum(
    path: Path,
    total: Sum,
    snapshots: Sequence[Snapshot],
    plan: Combination,
    profile: Profile,
) -> None:
    """Write a sum of snapshots, with metadata that names them and their coefficients."""
    parts = [
        {"file": s.path.name, "sha256": digest, "ema_std": s.profile.std,
         "images": s.profile.time, "coefficient": float(x)}
        for s, digest, x in zip(snapshots, total.sha256, plan.coefficients, strict=True)
    ]  # fmt: skip
    metadata = {
        "licence": total.checkpoint.metadata.get("licence", "unknown"),
        "source": "post-hoc EMA by erk ema (Karras et al. 2024, Sec. 3.2)",
        "training": {"images": profile.time, "ema_std": profile.std},
        "misfit": plan.misfit,
        "snapshots": parts,
    }
    write_safetensors(path, total.checkpoint._replace(metadata=metadata))

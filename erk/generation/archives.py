"""Archives of a run's images, packed from their PNG files in the order of seeds."""

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erk.generation.images import image_path, read_png, row_bytes
from erk.generation.manifest import UNKNOWN, ImageRecord, record_of, write_manifest
from erk.io.atomic import fsync_folder, replacing, write_file

Array = np.ndarray
ARCHIVES = {"zip": "images.zip", "npz": "images.npz"}
# python -m scripts.bench.precision --images 256: batches 1, 8 and 256 against 32, on the CPU
ROUNDING = {"fp32": 1, "fp16": 2, "bf16": 34}
"""Largest difference measured between batch sizes, in grey levels, of Heun, ERK-Guid and DPM++."""


class ImageFiles(NamedTuple):
    """The PNG files of a run."""

    root: Path
    subdirs: bool  # 1000 images per sub-folder
    kind: str  # "png", or the archive that they are packed into: "zip" or "npz"

    def path(self, seed: int) -> Path:
        """Return the path of a seed's file."""
        return image_path(self.root, seed, self.subdirs)

    def name(self, seed: int) -> str:
        """Return the path of a seed's file below the root, as an archive names it."""
        return self.path(seed).relative_to(self.root).as_posix()

    def record(self, seed: int, png: bytes) -> ImageRecord:
        """Return the record of a PNG file; settings, batch size and NFE are still unknown."""
        return ImageRecord(seed, self.name(seed), self.sha256(png), "", file_size=len(png))

    def sha256(self, png: bytes) -> str:
        """Return the sha256 of a PNG file as a record holds it."""
        return hashlib.sha256(hashed_bytes(png, self.kind)).hexdigest()

    def stored_sha256(self, seed: int) -> str:
        """Return the sha256 of a seed's file; empty if there is none."""
        try:
            return self.sha256(self.path(seed).read_bytes())
        except FileNotFoundError:
            return ""

    def write(self, record: ImageRecord, png: bytes) -> None:
        """Write a PNG file atomically."""
        path = self.root / record.file
        if self.subdirs:
            path.parent.mkdir(exist_ok=True)
        write_file(path, png)

    def read(self, row: Any) -> bytes:
        """Read the PNG file of a row of `manifest.TABLE`. Raises ValueError if it is damaged."""
        seed = int(row["seed"])
        path = self.path(seed)
        png = path.read_bytes()
        check_sha256(hashed_bytes(png, self.kind), row["sha256"].decode(), seed, path)
        return png


def pack(folder: Path, files: ImageFiles, records: Array, settings: str) -> None:
    """Write the archive of a run, if it has one, and its manifest, in the order of seeds.

    Parameters
    ----------
    folder : path
        The run's folder.
    files : ImageFiles
        The PNG files.
    records : array
        dtype `manifest.TABLE`, in the order of seeds.
    settings : str
        The hash of the settings, for the manifest.

    Raises
    ------
    ValueError
        If an image is not the one that its record describes.
    OSError
        If a file cannot be read or written.
    """
    if files.kind == "zip":
        members = ((files.name(int(row["seed"])), files.read(row)) for row in records)
        pack_zip(folder / ARCHIVES["zip"], members)
    elif files.kind == "npz":
        images = (read_png(files.read(row)) for row in records)
        pack_npz(folder / ARCHIVES["npz"], images, records["seed"])

    def manifest() -> Iterator[ImageRecord]:
        for number, row in enumerate(records):
            is_row = files.kind == "npz"
            name = f"arr_0[{number}]" if is_row else files.name(int(row["seed"]))
            record = record_of(row, name, settings)
            yield record._replace(file_size=None) if is_row else record

    write_manifest(folder, manifest())
    fsync_folder(folder)


def pack_zip(target: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write PNG files, (name, bytes) each, to an uncompressed archive (PNG is compressed).

    The same files give the same bytes: the archive has no time stamps.
    """
    with replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data)


def pack_npz(target: Path, images: Iterable[Array], seeds: Sequence[int] | Array) -> None:
    """Write images uint8 [C, H, W], one per seed, as arr_0 [N, H, W, C] with their seeds [N].

    One image is in memory at a time.
    """
    rest = iter(images)
    first = next(rest)
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(seeds), *first.shape[1:], first.shape[0]),
    }
    with replacing(target) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for image in chain([first], rest):
                stream.write(row_bytes(image))
        with archive.open(zipfile.ZipInfo("seeds.npy"), "w") as stream:
            np.lib.format.write_array(stream, np.asarray(seeds, dtype=np.int64))


def hashed_bytes(png: bytes, kind: str) -> bytes:
    """Return the bytes that a record's sha256 is of: the PNG file, for an npz the row's.

    A damaged PNG file gives bytes that no record is of.
    """
    if kind != "npz":
        return png
    try:
        return row_bytes(read_png(png))
    except ValueError:
        return b""


def check_sha256(data: bytes, sha256: str, seed: int, path: Path) -> None:
    """Raise ValueError unless the bytes of an image have the sha256 of its record."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(
            f"the image of seed {seed} in {path} is damaged (its sha256 is not that of its "
            "manifest): run the command of this run again with --verify"
        )


def summarize_records(records: Array, batch: int | None, precision: str) -> dict[str, Any]:
    """Summarize records (dtype `manifest.TABLE`) for run.json.

    Gives mean evaluations per image where they are known, and batch sizes if they are not all
    the requested ``batch``.
    """
    known = records[~(np.isnan(records["nfe"]) | np.isnan(records["guide_nfe"]))]
    means = {name: known[name].mean().item() for name in ("nfe", "guide_nfe")} if len(known) else {}
    sizes, counts = np.unique(records["batch"], return_counts=True)
    by_size = dict(zip(sizes.tolist(), counts.tolist(), strict=True))
    by_size.pop(UNKNOWN, None)
    return means | batch_sizes(by_size, batch, precision)


def batch_sizes(sizes: Mapping[int, int], batch: int | None, precision: str) -> dict[str, Any]:
    """Describe {batch size: images}; empty if all images have the requested size.

    Parameters
    ----------
    sizes : mapping
        How many images were sampled at each batch size.
    batch : int
        The requested size.
    precision : str
        As in a run's settings, such as "bf16 on cpu".
    """
    if not set(sizes) - {batch}:
        return {}
    counts = {str(size): n for size, n in sorted(sizes.items())}
    return {"batches": counts, "rounding": rounding(precision)}


def rounding(precision: str) -> str:
    """Say how far images of different batch sizes differ, as measured at a precision."""
    name, _, device = precision.partition(",")[0].partition(" on ")
    name = "fp32" if (name, device) == ("auto", "cpu") else name
    levels = ROUNDING.get(name) if device == "cpu" else None
    if levels is None:
        return f"images of other batch sizes are rounded differently (not measured: {precision})"
    unit = "level" if levels == 1 else "levels"
    return (
        "images of other batch sizes are rounded differently: by up to "
        f"{levels} grey {unit} in {name}, measured with the preset digits"
    )

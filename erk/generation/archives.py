"""The end of a run: its archive, if one was asked for, and one manifest of all pictures."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erk.generation.images import pack_npz, pack_zip, png_bytes, read_png, row_bytes, sheet
from erk.generation.manifest import WHOLE, Entry, Lines, entries, pictures_of, to_line
from erk.io.atomic import attach_path, fsync_folder, replacing, write_file

ARCHIVES = {"zip": "images.zip", "npz": "images.npz"}
ROUNDING = "at most 1 grey level between pictures of different batch sizes"


class Tally:
    """What the entries of a run say together, for run.json."""

    def __init__(self) -> None:
        self.batches: Counter[int] = Counter()
        self.counted = 0
        self.sums = [0.0, 0.0]

    def add(self, entry: Entry) -> None:
        """Count one picture."""
        if entry.batch is not None:
            self.batches[entry.batch] += 1
        if entry.nfe is not None and entry.guide_nfe is not None:
            self.counted += 1
            self.sums = [self.sums[0] + entry.nfe, self.sums[1] + entry.guide_nfe]

    def facts(self, batch: int | None) -> dict[str, Any]:
        """Mean evaluations per picture, where known; batch sizes if they are not all ``batch``."""
        if not self.counted:
            return batch_sizes(self.batches, batch)
        nfe, guide_nfe = (total / self.counted for total in self.sums)
        return {"nfe": nfe, "guide_nfe": guide_nfe} | batch_sizes(self.batches, batch)


def batch_sizes(sizes: Counter[int], batch: int | None) -> dict[str, Any]:
    """Pictures by batch size, and what that means, unless all were made at the size asked for."""
    if not set(sizes) - {batch}:
        return {}
    told = {str(size): n for size, n in sorted(sizes.items())}
    return {"batches": told, "rounding": ROUNDING}


def put_together(folder: Path, kind: str, lines: Lines, batch: int | None = None) -> dict[str, Any]:
    """Write the archive of a run, in order of seeds, and its manifest; what they say together.

    Each is there whole or not at all, and the same pictures give the same bytes. ``batch``: the
    size that was asked for. Raises OSError, and ValueError if a picture is not the one that its
    line tells of.
    """
    tally = Tally()
    with replacing(folder / WHOLE) as manifest:

        def listed() -> Iterator[tuple[Entry, Path]]:
            for row, (entry, place) in enumerate(entries(lines)):
                file = f"arr_0[{row}]" if kind == "npz" else entry.file
                manifest.write(to_line(entry._replace(file=file, at=None, bytes=None)))
                tally.add(entry)
                yield entry, place

        if kind == "zip":
            pack_zip(folder / ARCHIVES[kind], (_member(*one) for one in listed()))
        elif kind == "npz":
            pack_npz(folder / ARCHIVES[kind], (_row(*one) for one in listed()), lines.seeds)
        else:
            for _ in listed():
                pass
    fsync_folder(folder)
    return tally.facts(batch)


def write_grid(folder: Path, images: Sequence[np.ndarray]) -> None:
    """grid.png, a contact sheet of pictures uint8 [C, H, W]."""
    pages = np.stack(images)
    scale = max(1, 48 // pages.shape[2])
    write_file(folder / "grid.png", png_bytes(sheet(pages, scale=scale)))


def read_packed(entry: Entry, manifest: Path) -> bytes:
    """A picture, as a PNG file's bytes, from the file beside its manifest."""
    assert entry.at is not None and entry.bytes is not None
    with attach_path(pictures_of(manifest)), open(pictures_of(manifest), "rb") as file:
        file.seek(entry.at)
        return file.read(entry.bytes)


def check_bytes(data: bytes, entry: Entry, place: Path) -> None:
    """ValueError unless the bytes of a picture are those that its line tells of."""
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ValueError(
            f"the picture of seed {entry.seed} in {place} is damaged (its sha256 is not that of "
            "its manifest): delete the file, then run the same command again"
        )


def _member(entry: Entry, manifest: Path) -> tuple[str, bytes]:
    """Name and bytes of a picture in a zip."""
    data = read_packed(entry, manifest)
    check_bytes(data, entry, pictures_of(manifest))
    return entry.file, data


def _row(entry: Entry, manifest: Path) -> np.ndarray:
    """A picture of an .npz, uint8 [C, H, W]."""
    data = read_packed(entry, manifest)
    try:
        image = read_png(data)
    except ValueError:
        image = np.zeros((1, 0, 0), np.uint8)  # as damaged as another picture
    check_bytes(row_bytes(image), entry, pictures_of(manifest))
    return image

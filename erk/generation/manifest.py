"""The log of a run: one line of JSON per image, appended once the image is on disk.

Every process appends to its own file in `.parts`, and a resumed run starts new files, so no two
writers share one. A line that a kill or a full disk has cut is ignored. When all images exist,
the records are written to manifest.jsonl in the order of seeds.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erk.generation.seeds import MAX_SEED
from erk.io.atomic import attach_path, replacing

PARTS, MANIFEST = ".parts", "manifest.jsonl"
SHA256 = re.compile("[0-9a-f]{64}")
UNKNOWN = -1  # batch size of an image whose line was lost; its evaluations are NaN
TABLE = np.dtype(
    [("seed", np.int64), ("sha256", "S64"), ("batch", np.int64), ("nfe", np.float64),
     ("guide_nfe", np.float64)]
)  # fmt: skip
"""A record in memory; file names follow from seeds, and all records share the settings."""


class ImageRecord(NamedTuple):
    """A line of the log. None: unknown, of an image whose line was lost."""

    seed: int
    file: str  # below the run's folder; in a zip its member, in an npz the row of arr_0
    sha256: str  # of the PNG file; in an npz of the row's bytes, uint8 [H, W, C]
    settings: str  # hash of all settings and networks, see metadata.settings_hash
    batch: int | None = None  # images that the networks saw at a time
    nfe: float | None = None  # evaluations of the denoiser for this image
    guide_nfe: float | None = None

    def to_line(self) -> bytes:
        """Encode the record as a line of JSON."""
        return json.dumps(self._asdict()).encode() + b"\n"

    def to_row(self) -> tuple[Any, ...]:
        """Return the record as a row of `TABLE`."""
        batch = UNKNOWN if self.batch is None else self.batch
        evaluations = (math.nan if n is None else n for n in (self.nfe, self.guide_nfe))
        return (self.seed, self.sha256, batch, *evaluations)


def record_of(row: Any, file: str, settings: str) -> ImageRecord:
    """Return a row of `TABLE` as a record."""
    seed, sha256, batch, nfe, guide_nfe = row.item()
    known = (None if math.isnan(n) else n for n in (nfe, guide_nfe))
    batch = None if batch == UNKNOWN else batch
    return ImageRecord(seed, file, sha256.decode(), settings, batch, *known)


def parse_line(line: bytes) -> ImageRecord | None:
    """Read a line of a log; None if it is cut, or not the record of an image."""
    try:
        record = ImageRecord(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    seed, file, sha256, settings, batch, *evaluations = record
    is_valid = (
        line.endswith(b"\n")
        and type(seed) is int
        and 0 <= seed <= MAX_SEED
        and type(file) is type(sha256) is type(settings) is str
        and SHA256.fullmatch(sha256) is not None
        and (batch is None or (type(batch) is int and 0 < batch < 2**63))
        and all(n is None or _is_count(n) for n in evaluations)
    )
    return record if is_valid else None


def _is_count(value: Any) -> bool:
    """Whether a value is a finite number that is not negative."""
    return type(value) in (int, float) and 0 <= value < 1e18


class ImageLog:
    """The log of one process; its file is created at the first use."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path: Path | None = None

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Append records and fsync them.

        Raises OSError, among them FileNotFoundError if the folder has been removed.
        """
        path = self.path = self.path or self._create()
        with attach_path(path), open(path, "r+b") as file:  # not "ab": it would create the file
            file.seek(0, os.SEEK_END)
            file.write(b"".join(record.to_line() for record in records))
            file.flush()
            os.fsync(file.fileno())

    def _create(self) -> Path:
        """Create a new file; no other process has or gets its name."""
        for number in count():
            path = self.folder / f"{self.name}.{number}.jsonl"
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            return path
        raise AssertionError


def log_files(folder: Path) -> list[Path]:
    """List the logs of a run's folder, manifest.jsonl among them, by modification time."""
    manifest = folder / MANIFEST
    files = [*([manifest] if manifest.is_file() else []), *(folder / PARTS).glob("*.jsonl")]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))


def has_records(folder: Path) -> bool:
    """Whether a run's logs hold any record."""
    return next(_records(log_files(folder)), None) is not None


def read_records(folder: Path, settings: str) -> np.ndarray:
    """Read a run's logs.

    Returns
    -------
    ndarray
        dtype `TABLE`, one row per seed in the order of seeds; of several lines the last.

    Raises
    ------
    ValueError
        If a line belongs to other settings than those with this hash.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for path, record in _records(log_files(folder)):
            if record.settings != settings:
                raise ValueError(
                    f"{path} lists images of other settings than {folder / 'run.json'}; choose "
                    "another --outdir."
                )
            yield record.to_row()

    table = np.fromiter(rows(), TABLE)
    _, last = np.unique(table["seed"][::-1], return_index=True)
    return table[len(table) - 1 - last]


def _records(files: Iterable[Path]) -> Iterator[tuple[Path, ImageRecord]]:
    for path in files:
        with open(path, "rb") as lines:
            for line in lines:
                record = parse_line(line)
                if record is not None:
                    yield path, record


def write_manifest(folder: Path, records: Iterable[ImageRecord]) -> None:
    """Write manifest.jsonl atomically."""
    with replacing(folder / MANIFEST) as file:
        for record in records:
            file.write(record.to_line())

"""The log of a run: one line of JSON per image, appended before the image is written.

Every process appends to a separate file in `.parts`, and a resumed run starts new files, so no two
writers share one. A line is on the disk before the image that it describes, so an image without a
line is not the run's. A line that a kill or a full disk has cut is ignored. When all images exist,
the records are written to manifest.jsonl in the order of seeds.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erk.generation.seeds import MAX_SEED
from erk.io.atomic import attach_path, replacing, sync

PARTS, MANIFEST = ".parts", "manifest.jsonl"
SHA256 = re.compile("[0-9a-f]{64}")
UNKNOWN = -1  # a batch size or a number of bytes that no line gives; unknown evaluations are NaN
TABLE = np.dtype(
    [("seed", np.int64), ("sha256", "S64"), ("batch", np.int64), ("nfe", np.float64),
     ("guide_nfe", np.float64), ("file_size", np.int64)]
)  # fmt: skip
"""A record in memory; file names follow from seeds, and all records share the settings."""

LINE = re.compile(
    rb'^\{"seed": (0|[1-9]\d{0,17}), "file": "[ !#-\[\]-~]*", "sha256": "([0-9a-f]{64})", '
    rb'("settings": "[0-9a-f]*", "batch": [^,\n]*, "nfe": [^,\n]*, "guide_nfe": [^,}\n]*)'
    rb'(?:, "file_size": (0|[1-9]\d{0,17}|null))?\}\n',
    re.MULTILINE,
)
"""A line as `ImageRecord.to_line` writes it; the third group is the same for a batch of images."""

EXAMPLE = b'{"seed": 0, "file": "", "sha256": "' + b"0" * 64 + b'", %s}\n'
PIECE = 1 << 19  # bytes of a log that are read at a time
LONGEST_LINE = 1 << 16
NUMBER = re.compile("[0-9]{1,18}")


class ImageRecord(NamedTuple):
    """A line of the log. None: unknown, of an image whose line was lost."""

    seed: int
    file: str  # below the run's folder; in a zip its member, in an npz the row of arr_0
    sha256: str  # of the PNG file; in an npz of the row's bytes, uint8 [H, W, C]
    settings: str  # hash of all settings and networks, see metadata.settings_hash
    batch: int | None = None  # images that the networks saw at a time
    nfe: float | None = None  # evaluations of the denoiser for this image
    guide_nfe: float | None = None
    file_size: int | None = None  # size of the PNG file; an npz holds none

    def to_line(self) -> bytes:
        """Encode the record as a line of JSON."""
        return json.dumps(self._asdict()).encode() + b"\n"

    def to_row(self) -> tuple[Any, ...]:
        """Return the record as a row of `TABLE`."""
        batch, size = (UNKNOWN if n is None else n for n in (self.batch, self.file_size))
        evaluations = (math.nan if n is None else n for n in (self.nfe, self.guide_nfe))
        return (self.seed, self.sha256, batch, *evaluations, size)


def record_of(row: Any, file: str, settings: str) -> ImageRecord:
    """Return a row of `TABLE` as a record."""
    seed, sha256, batch, nfe, guide_nfe, size = row.item()
    nfe, guide_nfe = (None if math.isnan(n) else n for n in (nfe, guide_nfe))
    batch, size = (None if n == UNKNOWN else n for n in (batch, size))
    return ImageRecord(seed, file, sha256.decode(), settings, batch, nfe, guide_nfe, size)


def parse_line(line: bytes) -> ImageRecord | None:
    """Read a line of a log; None if it is cut, or not the record of an image."""
    try:
        record = ImageRecord(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    seed, file, sha256, settings, batch, *evaluations, size = record
    is_valid = (
        line.endswith(b"\n")
        and type(seed) is int
        and 0 <= seed <= MAX_SEED
        and type(file) is type(sha256) is type(settings) is str
        and SHA256.fullmatch(sha256) is not None
        and (batch is None or (type(batch) is int and 0 < batch < 2**63))
        and (size is None or (type(size) is int and 0 <= size < 2**63))
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
            sync(file)

    def _create(self) -> Path:
        """Create a new file; its number is above that of every log of earlier sessions."""
        number = 1 + max((_number(path) for path in self.folder.glob("*.jsonl")), default=-1)
        while True:
            path = self.folder / f"{self.name}.{number}.jsonl"
            try:
                path.open("xb").close()
            except FileExistsError:
                number += 1
                continue
            return path


def _number(path: Path) -> int:
    """Return the number in a log's name; those of an earlier session are lower."""
    number = path.name.removesuffix(".jsonl").rpartition(".")[2]
    return int(number) if NUMBER.fullmatch(number) else 0


def log_files(folder: Path) -> list[Path]:
    """List the logs of a run's folder: manifest.jsonl, then the others from old to new.

    The order follows from the numbers in their names, never from a clock.
    """
    manifest = folder / MANIFEST
    logs = sorted((folder / PARTS).glob("*.jsonl"), key=lambda path: (_number(path), path.name))
    return [path for path in (manifest, *logs) if path.is_file()]


def read_records(
    folder: Path, settings: str, sha256_of: Callable[[int], str] | None = None
) -> np.ndarray:
    """Read a run's logs.

    Parameters
    ----------
    folder : path
        The run's folder.
    settings : str
        The hash of its settings.
    sha256_of : callable, optional
        Gives the sha256 of a seed's file. It is called where lines of one seed disagree.

    Returns
    -------
    ndarray
        dtype `TABLE`, one row per seed in the order of seeds; of several lines the last that
        describes the file, or the last of all.

    Raises
    ------
    ValueError
        If a line belongs to other settings than those with this hash.
    """
    tables = [np.empty(0, TABLE)]
    for path in log_files(folder):
        for table, keys in _tables(path):
            if keys - {settings}:
                raise ValueError(
                    f"{path} lists images of other settings than {folder / 'run.json'}; choose "
                    "another --outdir."
                )
            tables.append(table)
    lines = np.concatenate(tables)
    tables.clear()
    if (np.diff(lines["seed"]) > 0).all():
        return lines
    lines = lines[np.argsort(lines["seed"], kind="stable")]
    return lines[_chosen(lines, sha256_of)]


def _chosen(lines: np.ndarray, sha256_of: Callable[[int], str] | None) -> np.ndarray:
    """Return the index of one line per seed; lines are in the order of seeds, then of age."""
    seeds = lines["seed"]
    is_last = np.append(seeds[1:] != seeds[:-1], True)[: len(seeds)]
    chosen = np.flatnonzero(is_last)
    if sha256_of is None or len(chosen) == len(seeds):
        return chosen
    disagree = ~is_last[:-1] & (lines["sha256"][1:] != lines["sha256"][:-1])
    for seed in np.unique(seeds[:-1][disagree]):
        first, end = np.searchsorted(seeds, [seed, seed + 1])
        same = np.flatnonzero(lines["sha256"][first:end] == sha256_of(int(seed)).encode())
        if len(same):
            chosen[np.searchsorted(seeds[chosen], seed)] = first + same[-1]
    return chosen


def _tables(path: Path) -> Iterator[tuple[np.ndarray, set[str]]]:
    """Read a log in pieces, each as rows of `TABLE` and the hashes of their settings."""
    rest = b""
    with open(path, "rb") as file:
        while data := file.read(PIECE):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if len(rest) > LONGEST_LINE:
                rest = b"\0"  # what follows of the line is no record either
            if newline:
                yield _parse_usual(lines + newline) or _parse_any(lines)


def _parse_usual(lines: bytes) -> tuple[np.ndarray, set[str]] | None:
    """Read lines at once, where all of them are as `ImageRecord.to_line` writes them."""
    matches = LINE.findall(lines)
    if not matches or len(matches) != lines.count(b"\n"):
        return None
    seeds, hashes, common, sizes = zip(*matches, strict=True)
    read = {text: parse_line(EXAMPLE % text) for text in set(common)}
    if None in read.values():
        return None
    rows = {text: record.to_row()[2:5] for text, record in read.items() if record is not None}
    table = np.empty(len(matches), TABLE)
    table["seed"] = np.fromiter(map(int, seeds), np.int64, len(seeds))
    table["sha256"] = hashes
    values = np.array([rows[text] for text in common], np.float64)
    table["batch"], table["nfe"], table["guide_nfe"] = values.T
    table["file_size"] = [int(size) if size.isdigit() else UNKNOWN for size in sizes]
    return table, {record.settings for record in read.values() if record is not None}


def _parse_any(lines: bytes) -> tuple[np.ndarray, set[str]]:
    """Read lines one after the other; those that are no records are ignored."""
    records = [parse_line(line + b"\n") for line in lines.split(b"\n")]
    valid = [record for record in records if record is not None]
    rows = np.array([record.to_row() for record in valid], TABLE)
    return rows, {record.settings for record in valid}


def write_manifest(folder: Path, records: Iterable[ImageRecord]) -> None:
    """Write manifest.jsonl atomically."""
    with replacing(folder / MANIFEST) as file:
        for record in records:
            file.write(record.to_line())

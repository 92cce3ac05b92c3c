"""What a run has made: one line per picture, appended when the picture is on the disk.

Every process appends to a file of its own, in the run's folder .parts, and a run that goes on
begins new ones: no two writers share a file, and a line that a kill cut off is read by nobody.
In an archive's run a second file beside it takes the pictures, which the lines find by place and
length. When all pictures are there, the lines are put together as manifest.jsonl, in seed order.
"""

import json
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, count, zip_longest
from pathlib import Path
from typing import NamedTuple

from erk.io.atomic import attach_path

PARTS, WHOLE = ".parts", "manifest.jsonl"
NUMBER = rb"(\d{1,30}(?:\.\d{1,30})?(?:e(?:-\d{1,3}|\+?\d\d?))?|null)"  # finite
LINE = re.compile(
    rb'\{"seed": (\d{1,30}), "file": "([^"\\\0-\x1f\x7f-\xff]{1,999})", '
    rb'"sha256": "([0-9a-f]{64})", '
    rb'"settings": "(\w{1,99})", "batch": (\d{1,18}|null), "nfe": %(number)b, '
    rb'"guide_nfe": %(number)b(?:, "at": (\d{1,18}), "bytes": (\d{1,18}))?\}\n'
    % {b"number": NUMBER}
)


class Entry(NamedTuple):
    """One picture. None: not known, of a picture that was found without its line."""

    seed: int
    file: str  # below the run's folder; of a zip its member, of an npz the row of arr_0
    sha256: str  # of the PNG file; of an npz of the row's bytes, uint8 [H, W, C]
    settings: str  # the hash of all settings and networks: folder.settings_hash
    batch: int | None = None  # pictures at a time: another number rounds differently
    nfe: float | None = None  # evaluations of the network for this picture, counted
    guide_nfe: float | None = None
    at: int | None = None  # where its bytes begin in the file of pictures beside the manifest
    bytes: int | None = None


class Lines(NamedTuple):
    """The places of lines in manifests, sorted by seed; what is in them is read when wanted."""

    files: list[Path]
    seeds: list[int]
    places: array  # of each: its file in the upper 16 bits, then where its line begins


class Marks:
    """Some of many seeds: a byte apiece, where a set takes a hundred."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = sorted(seeds)
        self.flags = bytearray(len(self.seeds))
        is_range = bool(self.seeds) and self.seeds[-1] - self.seeds[0] + 1 == len(self.seeds)
        self.first = self.seeds[0] if is_range else None

    @classmethod
    def of(cls, seeds: Sequence[int], among: Sequence[int] | None = None) -> "Marks":
        """All of these seeds marked, among no others or among more."""
        marks = cls(seeds if among is None else among)
        for seed in seeds:
            marks.add(seed)
        return marks

    def __and__(self, other: "Marks") -> "Marks":
        """What is marked in both, which have the same seeds."""
        both = Marks(self.seeds)
        both.flags = bytearray(a & b for a, b in zip(self.flags, other.flags, strict=True))
        return both

    def _place(self, seed: int) -> int | None:
        n = len(self.seeds)
        if self.first is not None:
            return seed - self.first if 0 <= seed - self.first < n else None
        place = bisect_left(self.seeds, seed)
        return place if place < n and self.seeds[place] == seed else None

    def add(self, seed: int) -> None:
        """Mark a seed; those that are none of the many are left alone."""
        place = self._place(seed)
        if place is not None:
            self.flags[place] = 1

    def __contains__(self, seed: int) -> bool:
        place = self._place(seed)
        return place is not None and self.flags[place] == 1

    def __len__(self) -> int:
        return self.flags.count(1)

    def __iter__(self) -> Iterator[int]:
        return (seed for seed, flag in zip(self.seeds, self.flags, strict=True) if flag)


class Writer:
    """A process's own manifest, with a file of pictures if ``packed``; made at the first use."""

    def __init__(self, folder: Path, name: str, packed: bool) -> None:
        self.folder, self.name, self.packed = folder, name, packed
        self.path: Path | None = None

    def add(self, entries: Sequence[Entry], data: Sequence[bytes] = ()) -> None:
        """Append the pictures, if they are packed, and then their lines.

        The pictures are on the disk before a line says so. Raises OSError, among them
        FileNotFoundError if the folder has vanished.
        """
        path = self.path = self.path or self._begin()
        if self.packed:
            at = pictures_of(path).stat().st_size
            ends = list(accumulate(map(len, data), initial=at))
            entries = [
                entry._replace(at=begin, bytes=len(piece))
                for entry, begin, piece in zip(entries, ends[:-1], data, strict=True)
            ]
            _append(pictures_of(path), b"".join(data))
        _append(path, b"".join(map(to_line, entries)))

    def _begin(self) -> Path:
        """A new pair of files; whoever else begins one gets other names."""
        for number in count():
            path = self.folder / f"{self.name}.{number}.jsonl"
            try:
                if self.packed:
                    pictures_of(path).open("xb").close()
                path.open("xb").close()
            except FileExistsError:
                continue
            return path
        raise AssertionError


def _append(path: Path, data: bytes) -> None:
    """Add to a file that is there, and see it on the disk; a new one would hide a lost one."""
    with attach_path(path), open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def pictures_of(manifest: Path) -> Path:
    """The file with the pictures of an archive's manifest."""
    return manifest.with_suffix(".pictures")


def to_line(entry: Entry) -> bytes:
    """The entry as a line of JSON; places of pictures only where there are some."""
    told = {name: value for name, value in entry._asdict().items()}
    if entry.at is None:
        told.pop("at"), told.pop("bytes")
    return json.dumps(told).encode() + b"\n"


def parse(line: bytes) -> Entry | None:
    """The entry of a line; None if a kill or a full disk has cut it."""
    found = LINE.fullmatch(line)
    return None if found is None else Entry(**json.loads(line))


def manifests(folder: Path) -> list[Path]:
    """All manifests of a run's folder, the one that was written to last at the end."""
    whole, parts = folder / WHOLE, (folder / PARTS).glob("*.jsonl")
    found = [*([whole] if whole.is_file() else []), *parts]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def scan(path: Path) -> Iterator[tuple[int, int, bytes, int]]:
    """Of each whole line: where it begins, its seed, settings, and where its picture ends or -1.

    A picture that its file does not hold to the end is left out with its line.
    """
    pictures = pictures_of(path)
    held = pictures.stat().st_size if pictures.is_file() else 0
    begin = 0
    with open(path, "rb") as file:
        for line in file:
            found = LINE.fullmatch(line)
            if found is not None:
                seed, settings, at, size = found.group(1, 4, 8, 9)
                end = -1 if at is None else int(at) + int(size)
                if end <= held:
                    yield begin, int(seed), settings, end
            begin += len(line)


def in_order(paths: Sequence[Path], packed: bool, wanted: Marks) -> Lines:
    """The lines of the wanted seeds, sorted by seed; of two for one seed the later one.

    ``packed``: lines that tell where their picture lies in a file of pictures, or only others.
    """
    seeds, places = [], array("Q")
    for number, path in enumerate(paths):
        for begin, seed, _, end in scan(path):
            if packed == (end >= 0) and seed in wanted:
                seeds.append(seed)
                places.append(number << 48 | begin)
    order = sorted(range(len(seeds)), key=seeds.__getitem__)
    last = [
        i for i, after in zip_longest(order, order[1:])
        if after is None or seeds[i] != seeds[after]
    ]  # fmt: skip
    return Lines(list(paths), [seeds[i] for i in last], array("Q", (places[i] for i in last)))


def entries(lines: Lines) -> Iterator[tuple[Entry, Path]]:
    """Each entry with the manifest that holds it, in order of seeds; one file is open at a time."""
    number, file = -1, None
    try:
        for place in lines.places:
            if place >> 48 != number:
                if file is not None:
                    file.close()
                number = place >> 48
                file = open(lines.files[number], "rb")  # noqa: SIM115
            assert file is not None
            file.seek(place & (1 << 48) - 1)
            entry = parse(file.readline())
            assert entry is not None
            yield entry, lines.files[number]
    finally:
        if file is not None:
            file.close()

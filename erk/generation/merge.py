"""Shards of a run that lie in folders of their own become one folder, each seed in it once."""

import errno
import heapq
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erk.generation.archives import ARCHIVES, check_bytes, read_packed
from erk.generation.images import image_path, png_bytes, read_png, row_bytes
from erk.generation.listing import listed_seeds, seeds_there
from erk.generation.manifest import Entry, Lines, Marks, entries, in_order, manifests, pictures_of
from erk.generation.record import check_same, read_record, settings_hash
from erk.generation.run_folder import GROUP, RunFolder
from erk.generation.seeds import few, format_seeds, parse_seeds
from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_RATIO,
    MAX_PIXELS,
    MAX_RATIO,
    find_member,
    read_member,
    read_npy_header,
)

ADVICE = "only pictures of the same settings can be merged"


class Merged(NamedTuple):
    """What came of it."""

    folder: Path
    pictures: int
    copies: int  # seeds that several folders held, with the same picture


class Source(NamedTuple):
    """A run's folder to take pictures from, complete or not; nothing in it is changed."""

    folder: Path
    record: dict[str, Any]
    kind: str
    subdirs: bool
    is_packed: bool  # an archive that is not finished
    lines: Lines


class Found(NamedTuple):
    """A picture in a source."""

    entry: Entry
    manifest: Path
    source: int


def merge_runs(folders: Sequence[Path], dest: Path) -> Merged:
    """Gather the pictures of all folders, each checked against its sha256, in ``dest``.

    Runs must have the same settings and networks. A seed in several folders must have the same
    picture in all; one that a run was to make and that no folder holds is an error. ``dest`` is
    a finished run afterwards; if merging is interrupted it goes on when it is run again. Raises
    ValueError or OSError before anything is written, unless a picture turns out to be damaged.
    """
    sources = [_open(folder) for folder in folders]
    first = sources[0]
    for other in sources[1:]:
        check_same(first.record, other.record, other.folder, ADVICE)
    wanted = Marks(sorted({s for one in sources for s in parse_seeds(one.record["seeds"])}))
    copies = _check_once(sources, wanted)
    folder = RunFolder(dest, first.kind, first.subdirs, first.record["settings"])
    facts = first.record | {
        "seeds": format_seeds(wanted.seeds), "merged": [str(one.folder) for one in sources]
    }  # fmt: skip
    pending = folder.check(wanted.seeds)
    folder.check_networks(facts)
    if pending or not folder.record.get("complete"):
        folder.begin(facts)
        _copy(sources, folder, Marks.of(pending))
        folder.finish()
    return Merged(dest, len(wanted.seeds), copies)


def finish_run(place: Path) -> Merged:
    """Complete a folder that shards have filled together. ValueError if seeds are missing."""
    source = _open(place)
    folder = RunFolder(place, source.kind, source.subdirs, source.record["settings"])
    seeds = parse_seeds(source.record["seeds"])
    missing = folder.check(seeds)
    if missing:
        raise ValueError(_lacking(missing))
    if not folder.record["complete"]:
        folder.resume(seeds)
        folder.finish()
    return Merged(place, len(seeds), 0)


def _open(folder: Path) -> Source:
    record = read_record(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} holds no run.json: give the folder of a run")
    kind, subdirs = (record["settings"].get(name) for name in ("format", "subdirs"))
    if kind not in ("png", *ARCHIVES) or not isinstance(subdirs, bool):
        raise ValueError(f"{folder / 'run.json'} does not tell the format of the pictures")
    is_packed = kind in ARCHIVES and not record["complete"]
    seeds = parse_seeds(record["seeds"])
    made = listed_seeds(folder, settings_hash(record), is_packed, seeds)
    if kind == "png":
        made &= seeds_there(folder, subdirs, seeds)
    lines = in_order(manifests(folder), is_packed, made)
    return Source(folder, record, kind, subdirs, is_packed, lines)


def _by_seed(sources: Sequence[Source]) -> Iterator[list[Found]]:
    """What the sources hold of each seed, in order of seeds."""

    def found(number: int, source: Source) -> Iterator[Found]:
        return (Found(entry, place, number) for entry, place in entries(source.lines))

    every = (found(number, source) for number, source in enumerate(sources))
    merged = heapq.merge(*every, key=lambda one: one.entry.seed)
    for _, group in groupby(merged, key=lambda one: one.entry.seed):
        yield list(group)


def _check_once(sources: Sequence[Source], wanted: Marks) -> int:
    """Whether every wanted seed has one picture; how many have copies. Raises ValueError."""
    copies = 0
    for group in _by_seed(sources):
        first = group[0]
        wanted.add(first.entry.seed)
        copies += len(group) > 1
        other = next((one for one in group if one.entry.sha256 != first.entry.sha256), None)
        if other is not None:
            places = [sources[one.source].folder for one in (first, other)]
            sizes = [one.entry.batch for one in (first, other)]
            reason = "" if sizes[0] == sizes[1] else f" (batch {sizes[0]} and {sizes[1]})"
            raise ValueError(
                f"{places[0]} and {places[1]} hold different pictures of seed {first.entry.seed}"
                f"{reason}: delete one of the two, with its run if it is damaged, and merge again"
            )
    missing = [seed for seed in wanted.seeds if seed not in wanted]
    if missing:
        raise ValueError(_lacking(missing))
    return copies


def _lacking(seeds: Sequence[int]) -> str:
    return (
        f"no folder holds the pictures of the seeds {few(seeds)}: run their shards to the end, "
        "then merge again"
    )


def _copy(sources: Sequence[Source], folder: RunFolder, pending: Marks) -> None:
    """Put the pictures of the pending seeds into the folder, with their lines."""
    with ExitStack() as stack:
        readers = [_reader(source, stack) for source in sources]
        listed: list[Entry] = []
        data: list[bytes] = []
        for found, *_ in _by_seed(sources):
            if found.entry.seed not in pending:
                continue
            data.append(readers[found.source](found.entry, found.manifest))
            listed.append(found.entry)
            if len(listed) == GROUP:
                folder.put(listed, data)
                listed, data = [], []
        if listed:
            folder.put(listed, data)


def _reader(source: Source, stack: ExitStack) -> Callable[[Entry, Path], bytes]:
    """(entry, manifest) -> the picture as a PNG file's bytes; ValueError if it is damaged.

    Where a picture lies follows from its seed: no name in a manifest is trusted.
    """
    archive: Any = None
    rows: Callable[[Entry], Any] | None = None
    if source.kind in ARCHIVES and not source.is_packed:
        place = source.folder / ARCHIVES[source.kind]
        with _sound(place):
            archive = stack.enter_context(zipfile.ZipFile(place))
            rows = _rows(archive, stack) if source.kind == "npz" else None

    def read(entry: Entry, manifest: Path) -> bytes:
        path = image_path(source.folder, entry.seed, source.subdirs)
        place = pictures_of(manifest) if source.is_packed else path
        with _sound(place):
            if rows is not None:
                pixels = rows(entry)
                data, checked = png_bytes(pixels), row_bytes(pixels)
            else:
                if source.is_packed:
                    data = read_packed(entry, manifest)
                elif archive is not None:
                    name = path.relative_to(source.folder).as_posix()
                    data = read_member(archive, name, MAX_IMAGE_RATIO)
                else:
                    data = path.read_bytes()
                checked = row_bytes(read_png(data)) if source.kind == "npz" else data
        check_bytes(checked, entry, place)
        return data

    return read


@contextmanager
def _sound(place: Path) -> Iterator[None]:
    """ValueError, naming the place, for what a damaged picture or archive makes libraries raise."""
    try:
        yield
    except DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the system's word on the file; EINVAL: a place before its beginning
        raise ValueError(f"{place} is damaged: delete it, then make it again") from error


def _rows(archive: zipfile.ZipFile, stack: ExitStack) -> Callable[[Entry], Any]:
    """entry -> its picture uint8 [C, H, W] in arr_0 of an npz, of which only that is read."""
    info = find_member(archive, "arr_0.npy", 0, MAX_RATIO)
    stream = stack.enter_context(archive.open(info))
    shape, _, dtype = read_npy_header(stream, info.file_size)
    begin, size = stream.tell(), math.prod(shape[1:])
    is_right = len(shape) == 4 and dtype == np.uint8 and shape[3] in (1, 3)
    if not is_right or not 0 < size <= 3 * MAX_PIXELS:
        raise ValueError("arr_0 holds no pictures")

    def read(entry: Entry) -> Any:
        row = re.fullmatch(r"arr_0\[(\d+)\]", entry.file)
        stream.seek(begin + (int(row[1]) if row else 0) * size)
        pixels = np.frombuffer(stream.read(size), np.uint8)
        return pixels.reshape(shape[1:]).transpose(2, 0, 1)

    return read

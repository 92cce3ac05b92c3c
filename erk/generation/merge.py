"""Merge the folders of shards into one that holds each seed once."""

import errno
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erk.generation.archives import ARCHIVES, ImageFiles, check_sha256, hashed_bytes
from erk.generation.images import png_bytes, stored_seeds
from erk.generation.manifest import PARTS, ImageRecord, read_records, record_of
from erk.generation.metadata import Metadata, check_same, read_metadata, settings_hash
from erk.generation.run_folder import GROUP, RunFolder
from erk.generation.seeds import format_seeds, format_seeds_short, parse_seeds
from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_RATIO,
    MAX_PIXELS,
    MAX_RATIO,
    find_member,
    read_member,
    read_npy_header,
)

ADVICE = "only images of the same settings can be merged"


class Merged(NamedTuple):
    """The result of a merge."""

    folder: Path
    images: int
    copies: int  # seeds whose image was in several folders


class Source(NamedTuple):
    """A run's folder to read images from, complete or not; it is not changed."""

    folder: Path
    metadata: Metadata
    seeds: list[int]  # those that the run was to sample
    files: ImageFiles
    archive: Path | None  # a finished archive
    records: np.ndarray  # of the images that it holds, dtype manifest.TABLE


def merge_runs(folders: Sequence[Path], dest: Path) -> Merged:
    """Copy the images of all folders to ``dest``, each checked against its sha256.

    Afterwards ``dest`` is a finished run; an interrupted merge is resumed by the same call.

    Parameters
    ----------
    folders : sequence of Path
        Folders of runs with the same settings and networks.
    dest : Path
        The folder to write.

    Raises
    ------
    ValueError
        If settings differ, if a seed has different images in two folders, if an image that one of
        the runs was to sample is missing, or if an image is damaged.
    OSError
        If a file cannot be read or written.
    """
    sources = [_open(folder) for folder in folders]
    first = sources[0]
    for other in sources[1:]:
        check_same(first.metadata, other.metadata, other.folder, ADVICE)
    wanted = np.unique(np.concatenate([np.asarray(s.seeds, np.int64) for s in sources]))
    merged = np.concatenate([source.records for source in sources])
    origins = np.repeat(np.arange(len(sources)), [len(source.records) for source in sources])
    order = np.lexsort((origins, merged["seed"]))
    merged, origins = merged[order], origins[order]
    copies = _check_once(sources, merged, origins, wanted)
    metadata = first.metadata | {
        "seeds": format_seeds(wanted), "merged": [str(one.folder) for one in sources]
    }  # fmt: skip
    run = RunFolder(dest, first.metadata["settings"], wanted.tolist(), metadata)
    run.look()
    with run:
        _copy(sources, merged, origins, run)
    return Merged(dest, len(wanted), copies)


def finish_run(folder: Path) -> Merged:
    """Complete a folder that shards have filled together.

    Raises ValueError if seeds are missing.
    """
    source = _open(folder)
    run = RunFolder(folder, source.metadata["settings"], source.seeds)
    run.look()
    if run.pending:
        raise ValueError(_missing(run.pending))
    with run:
        pass
    return Merged(folder, len(source.seeds), 0)


def _open(folder: Path) -> Source:
    metadata = read_metadata(folder)
    if metadata is None:
        raise FileNotFoundError(f"{folder} has no run.json: give the folder of a run")
    kind, subdirs = (metadata["settings"].get(name) for name in ("format", "subdirs"))
    if kind not in ("png", *ARCHIVES) or not isinstance(subdirs, bool):
        raise ValueError(f"{folder / 'run.json'} does not say the format of the images")
    seeds = parse_seeds(metadata["seeds"])
    records = read_records(folder, settings_hash(metadata))
    records = records[np.isin(records["seed"], seeds)]
    archive = folder / ARCHIVES[kind] if kind in ARCHIVES and metadata["complete"] else None
    files = ImageFiles(folder / PARTS if kind in ARCHIVES else folder, subdirs, kind)
    if archive is None:
        records = records[np.isin(records["seed"], stored_seeds(files.root, subdirs))]
    return Source(folder, metadata, seeds, files, archive, records)


def _check_once(
    sources: Sequence[Source], merged: np.ndarray, origins: np.ndarray, wanted: np.ndarray
) -> int:
    """Check that every wanted seed has one image; return how many have copies."""
    is_copy = merged["seed"][1:] == merged["seed"][:-1]
    differing = np.flatnonzero(is_copy & (merged["sha256"][1:] != merged["sha256"][:-1]))
    if len(differing):
        i = differing[0]
        first, second = (sources[origin].folder for origin in origins[i : i + 2])
        sizes = merged["batch"][i : i + 2]
        reason = "" if sizes[0] == sizes[1] else f" (batch {sizes[0]} and {sizes[1]})"
        raise ValueError(
            f"{first} and {second} hold different images of seed {merged['seed'][i]}{reason}: "
            "delete one of the two, with its run if it is damaged, and merge again"
        )
    missing = np.setdiff1d(wanted, merged["seed"])
    if len(missing):
        raise ValueError(_missing(missing))
    return len(np.unique(merged["seed"][1:][is_copy]))


def _missing(seeds: Sequence[int] | np.ndarray) -> str:
    return (
        f"no folder holds the images of the seeds {format_seeds_short(seeds)}: run their shards "
        "to the end, then merge again"
    )


def _copy(
    sources: Sequence[Source], merged: np.ndarray, origins: np.ndarray, run: RunFolder
) -> None:
    """Copy the pending images, with their records, in the order of seeds."""
    seeds, first = np.unique(merged["seed"], return_index=True)
    rows = first[np.isin(seeds, run.pending)]
    with ExitStack() as stack:
        readers = [_reader(source, stack) for source in sources]
        for i in range(0, len(rows), GROUP):
            records: list[ImageRecord] = []
            data: list[bytes] = []
            for row in rows[i : i + GROUP]:
                data.append(readers[origins[row]](merged[row]))
                records.append(record_of(merged[row], "", ""))
            run.add(records, data)


def _reader(source: Source, stack: ExitStack) -> Callable[[Any], bytes]:
    """Return a function that reads the PNG file of a record. It raises ValueError if damaged.

    The path of an image follows from its seed: no name in a manifest is trusted.
    """
    archive: Any = None
    npz_row: Callable[[int], np.ndarray] | None = None
    if source.archive is not None:
        with _readable(source.archive):
            archive = stack.enter_context(zipfile.ZipFile(source.archive))
            npz_row = _npz_rows(archive, stack) if source.files.kind == "npz" else None

    def read(row: Any) -> bytes:
        seed = int(row["seed"])
        path = source.archive or source.files.path(seed)
        with _readable(path):
            if npz_row is not None:
                png = png_bytes(npz_row(int(np.searchsorted(source.records["seed"], seed))))
            elif archive is not None:
                png = read_member(archive, source.files.name(seed), MAX_IMAGE_RATIO)
            else:
                png = path.read_bytes()
            content = hashed_bytes(png, source.files.kind)
        check_sha256(content, row["sha256"].decode(), seed, path)
        return png

    return read


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise ValueError, naming the path, for what libraries raise on damaged files."""
    try:
        yield
    except DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the system; EINVAL: a seek before the beginning
        raise ValueError(f"{path} is damaged: delete it, then generate it again") from error


def _npz_rows(archive: zipfile.ZipFile, stack: ExitStack) -> Callable[[int], np.ndarray]:
    """Return a function that reads one row of arr_0 as an image uint8 [C, H, W]."""
    info = find_member(archive, "arr_0.npy", 0, MAX_RATIO)
    stream = stack.enter_context(archive.open(info))
    shape, _, dtype = read_npy_header(stream, info.file_size)
    begin, size = stream.tell(), math.prod(shape[1:])
    is_valid = len(shape) == 4 and dtype == np.uint8 and shape[3] in (1, 3)
    if not is_valid or not 0 < size <= 3 * MAX_PIXELS:
        raise ValueError("arr_0 holds no images")

    def read(row: int) -> np.ndarray:
        stream.seek(begin + row * size)
        pixels = np.frombuffer(stream.read(size), np.uint8)
        return pixels.reshape(shape[1:]).transpose(2, 0, 1)

    return read

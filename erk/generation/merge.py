"""Merge the folders of shards into one that holds each seed once."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from erk.generation.archives import ARCHIVES, ImageFiles, check_sha256, hashed_bytes
from erk.generation.contents import find_images
from erk.generation.manifest import PARTS, ImageRecord, read_records, record_of
from erk.generation.metadata import Metadata, check_same, read_metadata, settings_hash
from erk.generation.reading import Read, open_images
from erk.generation.run_folder import GROUP, RunFolder
from erk.generation.seeds import format_seeds, format_seeds_short, parse_seeds

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
    differing: np.ndarray  # seeds whose image is not as its record says


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
    """Complete a folder that shards have filled together; verify every image of a complete one.

    Raises ValueError if images are missing or damaged.
    """
    source = _open(folder)
    run = RunFolder(folder, source.metadata["settings"], source.seeds, verify=True)
    run.look()
    if run.pending:
        damaged = run.damaged()
        raise ValueError(_damaged(folder, damaged) if len(damaged) else _missing(run.pending))
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
    if archive is not None and not archive.is_file():
        raise ValueError(f"{archive} is missing: run the command of this run again, then merge")
    files = ImageFiles(folder / PARTS if kind in ARCHIVES else folder, subdirs, kind)
    differing = records["seed"][:0]
    if archive is None:
        contents = find_images(folder, files, metadata)
        differing = contents.differing
        records = contents.records[np.isin(contents.records["seed"], contents.present)]
        records = records[np.isin(records["seed"], seeds)]
    return Source(folder, metadata, seeds, files, archive, records, differing)


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
    for source in sources:
        damaged = np.intersect1d(missing, source.differing)
        if len(damaged):
            raise ValueError(_damaged(source.folder, damaged))
    if len(missing):
        raise ValueError(_missing(missing))
    return len(np.unique(merged["seed"][1:][is_copy]))


def _missing(seeds: Sequence[int] | np.ndarray) -> str:
    return (
        f"no folder holds the images of the seeds {format_seeds_short(seeds)}: run their shards "
        "to the end, then merge again"
    )


def _damaged(folder: Path, seeds: np.ndarray) -> str:
    return (
        f"images in {folder} are damaged (seeds {format_seeds_short(seeds)}): run the command of "
        "this run again with --verify, then merge again"
    )


def _copy(
    sources: Sequence[Source], merged: np.ndarray, origins: np.ndarray, run: RunFolder
) -> None:
    """Copy the pending images, with their records, in the order of seeds."""
    seeds, first = np.unique(merged["seed"], return_index=True)
    rows = first[np.isin(seeds, run.pending)]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(open_images(source.files, source.archive, source.seeds))
            for source in sources
        ]
        for i in range(0, len(rows), GROUP):
            records: list[ImageRecord] = []
            data: list[bytes] = []
            for row in rows[i : i + GROUP]:
                png = _read(sources[origins[row]], readers[origins[row]], merged[row])
                data.append(png)
                records.append(record_of(merged[row], "", "")._replace(file_size=len(png)))
            run.add(records, data)


def _read(source: Source, read: Read, row: np.void) -> bytes:
    """Read the PNG file of a record. Raises ValueError, naming the path, if it is damaged."""
    seed = int(row["seed"])
    png = read(seed)
    content = hashed_bytes(png, source.files.kind)
    check_sha256(content, row["sha256"].decode(), seed, source.archive or source.files.path(seed))
    return png

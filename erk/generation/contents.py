"""Which images a run's folder holds, by its files and its logs."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from erk.generation.archives import ARCHIVES, ImageFiles
from erk.generation.images import (
    IMAGE_NAME,
    image_files,
    read_png,
    refuse_link,
    stored_images,
)
from erk.generation.locks import LOCK
from erk.generation.manifest import MANIFEST, PARTS, TABLE, UNKNOWN, read_records
from erk.generation.metadata import RUN, Metadata, settings_hash
from erk.generation.reading import open_images
from erk.generation.seeds import format_seeds_short, parse_seeds
from erk.generation.writer import spare_cores, thread_map
from erk.io.atomic import draft_target
from erk.io.files import sha256_of
from erk.runtime.distributed import World

T = TypeVar("T")
GRID = "grid.png"
NO_SEEDS = np.empty(0, np.int64)
NO_ROWS = np.empty(0, TABLE)
SHOWN = 1000  # images from which on their verification shows a progress bar


class Contents(NamedTuple):
    """The images of a run's folder; the arrays are in the order of seeds."""

    records: np.ndarray = NO_ROWS  # dtype manifest.TABLE
    present: np.ndarray = NO_SEEDS  # seeds whose image is as its record says
    differing: np.ndarray = NO_SEEDS  # seeds whose file is not as its record says, or has none
    restored: np.ndarray = NO_ROWS  # records to add: of lost lines, or of images in an archive
    lost: int = 0  # lines that a finished run has lost


def find_images(folder: Path, files: ImageFiles, metadata: Metadata) -> Contents:
    """Find the images of a run by their names, sizes and records; the files are not read.

    Only the lost lines of a finished run are restored from its images.

    Raises ValueError if a record belongs to other settings, or an image is a link.
    """
    if not metadata:
        return Contents()
    stored = stored_images(files.root, files.subdirs)  # before the logs: lines precede files
    records = read_records(folder, settings_hash(metadata), files.stored_sha256)
    listed = records[np.isin(records["seed"], stored["seed"])]
    is_listed = np.isin(stored["seed"], listed["seed"])
    sizes = stored["file_size"][is_listed]
    is_same = (listed["file_size"] == sizes) | ((listed["file_size"] == UNKNOWN) & (sizes > 0))
    present, differing = listed["seed"][is_same], listed["seed"][~is_same]
    unlisted = stored["seed"][~is_listed]
    restored = NO_ROWS
    if metadata["complete"] and len(unlisted):
        lost = unlisted[np.isin(unlisted, parse_seeds(metadata["seeds"]))]
        rows = (_restore(files, int(seed)) for seed in lost)
        restored = np.array([row for row in rows if row is not None], TABLE)
        present = np.union1d(present, restored["seed"])
        unlisted = np.setdiff1d(unlisted, present)
    return Contents(records, present, np.union1d(differing, unlisted), restored, len(restored))


def verify_images(files: ImageFiles, contents: Contents, seeds: Sequence[int]) -> Contents:
    """Compare the sha256 of the present images of some seeds with their records."""
    present = np.intersect1d(contents.present, np.asarray(seeds, np.int64))
    rows = contents.records[np.isin(contents.records["seed"], present)]
    with thread_map(spare_cores()) as parallel:
        hashes = _progress(parallel(files.stored_sha256, rows["seed"].tolist()), len(rows))
        is_same = np.fromiter((one.encode() for one in hashes), "S64", len(rows)) == rows["sha256"]
    wrong = rows["seed"][~is_same]
    return contents._replace(
        present=np.setdiff1d(contents.present, wrong),
        differing=np.union1d(contents.differing, wrong),
    )


def find_archived(
    folder: Path, files: ImageFiles, metadata: Metadata, verify: bool
) -> Contents | None:
    """Find the images of a finished archive; None if it is as run.json and the manifest say.

    The images are read only if the archive has another size (to verify: another sha256), or if
    lines of the manifest are lost. `restored` are then the records of those that are sound.
    """
    archive, size = folder / ARCHIVES[files.kind], metadata.get("archive_bytes")
    seeds = np.unique(np.asarray(parse_seeds(metadata["seeds"]), np.int64))
    records = read_records(folder, settings_hash(metadata))
    records = records[np.isin(records["seed"], seeds)]
    if not archive.is_file():
        return Contents()
    is_same = size in (None, archive.stat().st_size) and len(records) == len(seeds)
    if is_same and verify:
        is_same = sha256_of(archive) == metadata.get("archive_sha256")
    if is_same:
        return None
    known = {int(row["seed"]): row for row in records}
    rows = []
    with suppress(ValueError), open_images(files, archive, seeds) as read:
        for seed in _progress(seeds.tolist(), len(seeds)):
            with suppress(ValueError):
                png = read(seed)
                if seed not in known:
                    rows.append(files.record(seed, png).to_row())
                elif known[seed]["sha256"].decode() == files.sha256(png):
                    rows.append(known[seed].item())
    sound = np.array(rows, TABLE)
    lost = len(np.setdiff1d(sound["seed"], records["seed"]))
    return Contents(records, sound["seed"], np.setdiff1d(seeds, sound["seed"]), sound, lost)


def _restore(files: ImageFiles, seed: int) -> tuple[Any, ...] | None:
    """Return a row for a PNG file that has lost its line; None if the file is damaged."""
    png = files.path(seed).read_bytes()
    with suppress(ValueError):
        read_png(png)
        return files.record(seed, png).to_row()
    return None


def _progress(values: Iterable[T], count: int) -> Iterable[T]:
    return tqdm(values, "Verifying", count, unit="img", mininterval=0.5, disable=count < SHOWN)


def describe_contents(
    folder: Path, metadata: Metadata, contents: Contents, pending: Sequence[int]
) -> list[str]:
    """Describe in sentences what is not as the run left it."""
    lines = []
    if contents.lost:
        lines.append(
            f"{folder / MANIFEST} has lost lines (seeds without one: {contents.lost}): they are "
            "restored from the images, without batch size and NFE"
        )
    elif len(contents.restored):
        lines.append(f"the archive in {folder} is not as the run wrote it: it is packed again")
    differing = np.intersect1d(np.asarray(pending, np.int64), contents.differing)
    if metadata.get("complete"):
        ours = np.asarray(parse_seeds(metadata["seeds"]), np.int64)
        gone = np.intersect1d(np.asarray(pending, np.int64), ours)
        if len(gone):
            lines.append(
                f"{folder} was complete, but the images of some seeds are missing or damaged "
                f"({format_seeds_short(gone)}): they are sampled again"
            )
        rest = np.setdiff1d(ours, np.union1d(contents.present, gone))
        if len(rest) and metadata["settings"]["format"] == "png":
            lines.append(
                f"{folder} was complete, but the images of the seeds {format_seeds_short(rest)} "
                "are missing or damaged: add them to --seeds to sample them again"
            )
    elif len(differing):
        lines.append(
            f"images in {folder} are damaged or not of this run (seeds "
            f"{format_seeds_short(differing)}): they are sampled again"
        )
    return lines


def refuse_links(folder: Path) -> None:
    """Raise ValueError if a file that a run reads or writes is a link."""
    for name in (PARTS, RUN, MANIFEST, GRID, LOCK, *ARCHIVES.values()):
        if (folder / name).is_symlink():
            refuse_link(folder / name)


def share_of(seeds: Sequence[int], shard: tuple[int, int] | None) -> Sequence[int]:
    """Return every n-th seed for the shard (i, n); all of them for None."""
    return seeds if shard is None else seeds[shard[0] :: shard[1]]


def remove_drafts(folder: Path) -> None:
    """Remove the drafts of a run's files that killed processes left."""
    names = (GRID, RUN, MANIFEST, *ARCHIVES.values())
    for file in image_files(folder):
        target = draft_target(Path(file.path))
        if target is not None and (target in names or IMAGE_NAME.fullmatch(target)):
            with suppress(OSError):
                os.unlink(file.path)


def rank_share(seeds: Sequence[int], batch: int, world: World) -> list[int]:
    """Return the seeds of every size-th batch, for this rank."""
    starts = range(world.rank * batch, len(seeds), world.size * batch)
    return [seed for start in starts for seed in seeds[start : start + batch]]


def check_archived(archive: Path, archived: str, seeds: Sequence[int]) -> None:
    """Raise ValueError if a complete archive, with the seeds `archived`, lacks one of `seeds`."""
    if not np.isin(np.asarray(seeds), parse_seeds(archived)).all():
        raise ValueError(
            f"{archive} is complete with the seeds {archived}; choose another --outdir for other "
            "seeds."
        )

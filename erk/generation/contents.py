"""Which images a run's folder holds, by its files and its logs."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from erk.generation.archives import ARCHIVES, ImageFiles
from erk.generation.images import IMAGE_NAME, image_files, is_complete_png, stored_seeds
from erk.generation.manifest import MANIFEST, TABLE, read_records
from erk.generation.metadata import RUN, Metadata, settings_hash
from erk.generation.seeds import parse_seeds
from erk.io.atomic import draft_target
from erk.runtime.distributed import World

GRID = "grid.png"
NO_SEEDS = np.empty(0, np.int64)


class Contents(NamedTuple):
    """The images of a run's folder; the arrays are in the order of seeds."""

    records: np.ndarray = np.empty(0, TABLE)
    present: np.ndarray = NO_SEEDS  # seeds whose image is complete
    unlisted: np.ndarray = NO_SEEDS  # those of them without a record


def find_images(
    folder: Path,
    files: ImageFiles,
    metadata: Metadata,
    seeds: Sequence[int],
    shard: tuple[int, int] | None = None,
) -> Contents:
    """Find the images of some seeds and of those in run.json.

    Parameters
    ----------
    folder, files, metadata
        The run's folder, its PNG files and the content of run.json ({} if it is missing).
    seeds : sequence of int
        Which seeds to look for, in addition to run.json's.
    shard : (i, n), optional
        Only images of this shard may be unlisted; those of other shards may be about to be listed.

    Raises
    ------
    ValueError
        If a record belongs to other settings.
    """
    wanted, records = np.unique(np.asarray(seeds, np.int64)), Contents().records
    if metadata:
        wanted = np.union1d(wanted, np.asarray(parse_seeds(metadata["seeds"]), np.int64))
        records = read_records(folder, settings_hash(metadata))
    stored = stored_seeds(files.root, files.subdirs)
    stored = stored[np.isin(stored, wanted)]
    is_listed = np.isin(stored, records["seed"])
    unlisted = stored[~is_listed]
    if shard is not None:
        unlisted = unlisted[np.isin(unlisted, share_of(seeds, shard))]
    complete = [is_complete_png(files.path(seed)) for seed in unlisted.tolist()]
    unlisted = unlisted[np.asarray(complete, bool)]
    return Contents(records, np.union1d(stored[is_listed], unlisted), unlisted)


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

"""Which images a run's folder holds, by its files and its logs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from erk.generation.archives import ImageFiles
from erk.generation.images import is_complete_png, stored_seeds
from erk.generation.manifest import TABLE, read_records
from erk.generation.metadata import Metadata, settings_hash
from erk.generation.seeds import parse_seeds

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

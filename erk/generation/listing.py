"""Which pictures a run's folder holds, and which of them its manifests know."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from erk.generation.manifest import Marks, manifests, scan
from erk.generation.record import NAME

PICTURE = re.compile(r"(\d{6,})\.png")
STRAY = re.compile(
    r"\.(\d{6,}\.png|grid\.png|run\.json|manifest\.jsonl|images\.(zip|npz))\.[0-9a-f]+\.tmp"
)
"""Names of the temporary files of `files.replacing` in a run's folder."""


def listed_seeds(folder: Path, key: str, packed: bool, every: Sequence[int]) -> Marks:
    """Those of the seeds that have a line in a manifest, of an archive with its picture.

    Raises ValueError if a line is of other settings than those with the hash ``key``.
    """
    found = Marks(every)
    for path in manifests(folder):
        for _, seed, settings, end in scan(path):
            if settings != key.encode():
                raise ValueError(
                    f"{path} lists pictures of other settings than {folder / NAME} tells; choose "
                    "another --outdir."
                )
            if packed == (end >= 0):
                found.add(seed)
    return found


def seeds_there(folder: Path, subdirs: bool, every: Sequence[int]) -> Marks:
    """Those of the seeds whose PNG file lies where it belongs."""
    found = Marks(every)
    for place in files_in(folder):
        match = PICTURE.fullmatch(place.name)
        if match is not None:
            seed = int(match[1])
            parent = os.path.basename(os.path.dirname(place.path)) if subdirs else None
            if place.name == f"{seed:06d}.png" and parent in (None, f"{seed // 1000 * 1000:06d}"):
                found.add(seed)
    return found


def files_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files of a folder and of its numbered sub-folders; of one that is not there, none."""
    places = [os.fspath(folder)]
    while places:
        with suppress(FileNotFoundError), os.scandir(places.pop()) as found:
            for place in found:
                if place.name.isdecimal() and place.is_dir():
                    places.append(place.path)
                else:
                    yield place

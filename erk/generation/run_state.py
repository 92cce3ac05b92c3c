"""What a run's folder holds and what is left to sample; looking at it writes nothing."""

import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erk.generation.archives import ARCHIVES, ImageFiles
from erk.generation.contents import (
    Contents,
    check_archived,
    describe_contents,
    find_archived,
    find_images,
    refuse_links,
    share_of,
    verify_images,
)
from erk.generation.images import image_files
from erk.generation.job import plain
from erk.generation.manifest import PARTS, log_files
from erk.generation.metadata import (
    RUN,
    Metadata,
    check_same,
    read_metadata,
    settings_hash,
)
from erk.generation.seeds import format_seeds_short, parse_seeds
from erk.io.atomic import check_writable
from erk.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


class RunState:
    """A run and the state of its folder.

    Attributes
    ----------
    pending : list of int
        The seeds that this process still has to sample.
    metadata : dict
        The content of run.json.
    notices : list of str
        What is not as the run left it, in sentences for the user.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        seeds: Sequence[int],
        metadata: Metadata | None = None,
        *,
        shard: tuple[int, int] | None = None,
        verify: bool = False,
    ) -> None:
        self.path, self.seeds, self.shard, self.verify = path, seeds, shard, verify
        self.settings = json.loads(json.dumps(plain(identity)))
        self.kind, subdirs = self.settings.get("format", "png"), self.settings.get("subdirs", False)
        root = path / PARTS if self.kind in ARCHIVES else path
        self.files = ImageFiles(root, subdirs, self.kind)
        self.metadata: Metadata = {}
        self.pending: list[int] = []
        self.notices: list[str] = []
        self._new = metadata  # None: the networks are not loaded
        self._contents = Contents()
        self._is_sound = True  # a complete run is as its metadata and records say
        self._seen: list[Any] = []  # the state of the folder when it was looked at

    def look(self) -> None:
        """Read run.json and find out which seeds are pending. Raises ValueError or OSError."""
        if not (self.path / RUN).is_file():
            check_writable(self.path)
        self._seen = self._state()
        refuse_links(self.path)
        self.metadata = read_metadata(self.path) or {}
        if not self.metadata:
            deque(image_files(self.files.root), maxlen=0)  # raises ValueError at a link
        if self.metadata:
            self._check_same()
        elif log_files(self.path) or any(f.name.endswith(".png") for f in image_files(self.path)):
            raise ValueError(
                f"{self.path} holds images but no run.json with their settings; choose another "
                "--outdir."
            )
        self._contents, self._is_sound = self._find()
        share = np.asarray(share_of(self.seeds, self.shard), np.int64)
        self.pending = share[~np.isin(share, self._contents.present)].tolist()
        if self.is_complete and self.kind in ARCHIVES:
            self.pending = []
        self._is_sound = self._is_sound and not (self.metadata.get("complete") and self.pending)
        if not self.is_complete:
            check_writable(self.path)
            self._check_rest()
        self.notices = describe_contents(self.path, self.metadata, self._contents, self.pending)

    def damaged(self) -> np.ndarray:
        """Return the pending seeds whose image exists, but is not as its record says."""
        return np.intersect1d(np.asarray(self.pending, np.int64), self._contents.differing)

    def _find(self) -> tuple[Contents, bool]:
        """Return the images of the folder, and whether a complete run is as it says."""
        if self.kind in ARCHIVES and self.metadata.get("complete"):
            archive = self.path / ARCHIVES[self.kind]
            if archive.exists():
                check_archived(archive, self.metadata["seeds"], self.seeds)
            archived = find_archived(self.path, self.files, self.metadata, self.verify)
            return archived or Contents(), archived is None
        contents = find_images(self.path, self.files, self.metadata)
        if self.verify:
            contents = verify_images(self.files, contents, share_of(self.seeds, self.shard))
        return contents, not len(contents.restored)

    def _check_rest(self) -> None:
        """Raise ValueError if a complete run has lost images whose seeds are not asked for."""
        if self.metadata.get("complete"):
            seeds = np.asarray(parse_seeds(self.metadata["seeds"]), np.int64)
            rest = np.setdiff1d(seeds, np.union1d(self._contents.present, self.seeds))
            if len(rest):
                raise ValueError(
                    f"{self.path} was complete, but the images of the seeds "
                    f"{format_seeds_short(rest)} are missing or damaged: add them to --seeds, or "
                    "choose another --outdir."
                )

    def _check_same(self) -> None:
        new = (self._new or {}) | {"settings": self.settings}
        check_same(self.metadata, new, self.path / RUN)

    def _state(self) -> list[Any]:
        """Return what changes whenever another process writes to the folder."""
        with suppress(OSError):
            logs = [(path, path.stat().st_size) for path in log_files(self.path)]
            return [(self.path / RUN).read_bytes(), logs]
        return []

    @property
    def is_complete(self) -> bool:
        """Whether run.json says that all images exist, and nothing contradicts it."""
        archive = self.path / ARCHIVES[self.kind] if self.kind in ARCHIVES else None
        has_archive = archive is None or archive.is_file()
        return bool(self.metadata.get("complete")) and has_archive and self._is_sound

    def settings_key(self) -> str:
        """Hash the settings and networks, as the records of this run hold them."""
        return settings_hash(
            (self.metadata if self._new is None else self._new) | {"settings": self.settings}
        )

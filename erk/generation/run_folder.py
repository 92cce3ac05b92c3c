"""The folder of a run: images named by seed, a log of them, and run.json.

PNG files are the truth. An image counts as present when its file is complete; run.json fixes the
settings, so a folder never mixes two. An archive is packed from the PNG files, which lie in
`.parts` until then.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erk.generation.archives import ARCHIVES, ImageFiles, pack, summarize_records
from erk.generation.contents import (
    GRID,
    Contents,
    check_archived,
    find_images,
    rank_share,
    remove_drafts,
    share_of,
)
from erk.generation.images import IMAGE_NAME, image_files, png_bytes, read_png, write_grid
from erk.generation.job import plain
from erk.generation.manifest import (
    PARTS,
    ImageLog,
    ImageRecord,
    has_records,
    log_files,
    read_records,
)
from erk.generation.metadata import (
    RUN,
    Metadata,
    check_same,
    claim,
    read_metadata,
    settings_hash,
    write_metadata,
)
from erk.generation.sampling import ImageBatch
from erk.generation.seeds import format_seeds, format_seeds_short, parse_seeds
from erk.generation.writer import Submit, background, spare_cores, thread_map
from erk.io.atomic import check_writable, uninterrupted
from erk.runtime.distributed import World, barrier, broadcast
from erk.runtime.timing import OFF, Timer

ALONE = World(0, 1, torch.device("cpu"))
GRID_IMAGES = 100
LOCK = ".lock"  # for shards that end at the same time
LOCK_TIMEOUT = 3600  # seconds that a shard waits for another one that packs an archive
GROUP = 256  # images whose records are written at a time
DERIVED = ("nfe", "guide_nfe", "batches", "rounding")  # metadata that the records give


class RunFolder:
    """The output folder of a run, as a context manager.

    Entering it claims the folder; leaving it finishes the run (packs archives, writes the
    manifest, marks it complete), or, if an exception leaves the block before the first image is
    written, removes what this process created::

        with RunFolder.open(path, job) as run:
            for batch in generate(job, run.pending):
                run.write(batch)

    Attributes
    ----------
    pending : list of int
        The seeds that this process still has to sample.
    metadata : dict
        The content of run.json.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        seeds: Sequence[int],
        metadata: Metadata | None = None,
        *,
        batch: int = 1,
        shard: tuple[int, int] | None = None,
        world: World = ALONE,
        grid: bool = False,
        timer: Timer = OFF,
    ) -> None:
        self.path, self.seeds, self.batch, self.shard = path, seeds, batch, shard
        self.world, self.grid, self.timer = world, grid, timer
        self.settings = json.loads(json.dumps(plain(identity)))
        self.kind, subdirs = self.settings.get("format", "png"), self.settings.get("subdirs", False)
        root = path / PARTS if self.kind in ARCHIVES else path
        self.files = ImageFiles(root, subdirs, self.kind)
        self.metadata: Metadata = {}
        self.pending: list[int] = []
        self._new = metadata  # None: the networks are not loaded
        self._key = ""  # hash of the settings and networks, in the records
        self._created: list[Path] = []
        self._contents = Contents()
        self._stack = ExitStack()
        self._map: Callable[..., Any] = map
        self._submit: Submit = _call
        self._log = ImageLog(path / PARTS, f"{'-of-'.join(map(str, shard or (0, 1)))}.{world.rank}")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        job: Any,
        shard: tuple[int, int] | None = None,
        world: World = ALONE,
        *,
        grid: bool = False,
        timer: Timer = OFF,
    ) -> "RunFolder":
        """Look at a folder without writing to it.

        Parameters
        ----------
        path : path
            The folder; it need not exist.
        job : Job or JobPlan
            What to sample. A plan, whose networks are not loaded, finishes a run whose images all
            exist; a run with missing images needs a Job.
        shard : (i, n), optional
            Sample every n-th seed from the i-th on; other shards sample the rest, in this folder
            or another one.
        world : World
            The processes that share this run; the first one creates and finishes it.
        grid : bool
            Also write grid.png, a sheet of the first 100 images.
        timer : Timer
            Where to add up times.

        Raises
        ------
        ValueError
            If the folder cannot be used: other settings or networks, images of unknown origin,
            not writable, or an archive that is complete with other seeds.
        """
        run = cls(
            Path(path), job.identity, job.seeds, job.metadata, batch=job.batch, shard=shard,
            world=world, grid=grid, timer=timer,
        )  # fmt: skip
        run.look()
        return run

    def look(self) -> None:
        """Read run.json and find out which seeds are pending. Raises ValueError or OSError."""
        check_writable(self.path)
        if (self.path / PARTS).is_symlink():
            raise ValueError(
                f"{self.path / PARTS} is a link, so the run would write elsewhere: delete it"
            )
        self.metadata = read_metadata(self.path) or {}
        if self.metadata:
            check_same(
                self.metadata, (self._new or {}) | {"settings": self.settings}, self.path / RUN
            )
        elif log_files(self.path) or next(self.path.rglob("*.png"), None) is not None:
            raise ValueError(
                f"{self.path} holds images but no run.json with their settings; choose another "
                "--outdir."
            )
        if self.is_complete and self.kind in ARCHIVES:
            check_archived(self.path / ARCHIVES[self.kind], self.metadata["seeds"], self.seeds)
            self.pending = []
            return
        self._contents = find_images(self.path, self.files, self.metadata, self.seeds, self.shard)
        share = np.asarray(share_of(self.seeds, self.shard), np.int64)
        self.pending = share[~np.isin(share, self._contents.present)].tolist()

    @property
    def is_complete(self) -> bool:
        """Whether run.json says that all images exist and, of an archive, that it exists."""
        archive = self.path / ARCHIVES[self.kind] if self.kind in ARCHIVES else None
        return bool(self.metadata.get("complete")) and (archive is None or archive.is_file())

    def settings_key(self) -> str:
        """Hash the settings and networks, as the records of this run hold them."""
        return settings_hash(
            (self.metadata if self._new is None else self._new) | {"settings": self.settings}
        )

    def __enter__(self) -> "RunFolder":
        if self.pending and self._new is None:
            raise ValueError("images are missing and the networks are not loaded: load the plan")
        self._has_work = bool(self.pending) or not self.is_complete
        self._key = self.settings_key()
        barrier(self.world)  # until every process has looked at the folder
        if self.world.rank == 0 and self._has_work:
            self._begin()
        pending = broadcast(self.world, self.pending)  # also waits until the folder exists
        self.pending = rank_share(pending, self.batch, self.world)
        try:
            self._stack.enter_context(self.timer.host("wall"))
            if self.pending:
                self._map = self._stack.enter_context(thread_map(spare_cores()))
                waiting = functools.partial(self.timer.host, "waited")
                self._submit = self._stack.enter_context(background(waiting))
        except BaseException:
            self._stack.close()
            self._abandon()
            raise
        self._contents = Contents()  # 100 bytes per seed
        return self

    def write(self, batch: ImageBatch) -> None:
        """Encode and write a batch in the background; blocks while two others wait.

        Raises what writing an earlier batch raised: OSError, among them FileNotFoundError if the
        folder has been removed.
        """
        self._submit(self._store, batch)

    def add(self, records: Sequence[ImageRecord], data: Sequence[bytes]) -> None:
        """Write PNG files, then their records; signals are deferred. Raises as `write`."""
        records = [
            one._replace(file=self.files.name(one.seed), settings=self._key) for one in records
        ]
        with uninterrupted(), self._still_exists():
            list(self._map(self.files.write, records, data))
            self._log.append(records)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            self._stack.__exit__(kind, error, traceback)  # writes what was submitted
            if error is None:
                barrier(self.world)
        except Exception:
            self._abandon()
            raise
        if error is None and self.world.rank == 0:
            self._end()
        elif isinstance(error, Exception):
            self._abandon()

    def _store(self, batch: ImageBatch) -> None:
        """Encode a batch and write it."""
        images = batch.wait().numpy()
        with self.timer.host("encode"):
            data = list(self._map(png_bytes, images))
        with self.timer.host("write"):
            records = [
                self.files.record(seed, png)._replace(
                    batch=batch.size, nfe=batch.nfe, guide_nfe=batch.guide_nfe
                )
                for seed, png in zip(batch.seeds, data, strict=True)
            ]
            self.add(records, data)

    @contextmanager
    def _still_exists(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path} has been removed or renamed while the run wrote to it: its images "
                "are lost unless you put it back; then run the same command again"
            ) from error

    def _begin(self) -> None:
        """Create the folder and run.json, marked incomplete; list images without a record.

        Raises ValueError if a run of other settings has begun in the folder meanwhile.
        """
        new = self.metadata if self._new is None else self._new
        for folder in (self.path, self.path / PARTS):
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                self._created.append(folder)
        begun = self._incomplete(new)
        if not self.metadata and claim(self.path, begun):
            self._created.append(self.path / RUN)
        else:
            if not self.metadata:  # another process has begun meanwhile
                self.look()
                begun = self._incomplete(new)
            write_metadata(self.path, begun)
        self.metadata = begun
        self._list_unlisted()

    def _incomplete(self, new: Metadata) -> Metadata:
        """Return the metadata of a run that begins, with the seeds of earlier runs.

        Of a shard, these include the seeds that other shards are to sample.
        """
        earlier: Any = self._contents.present
        if self.shard is not None and self.metadata:
            earlier = parse_seeds(self.metadata["seeds"])
        seeds = np.union1d(np.asarray(self.seeds, np.int64), np.asarray(earlier, np.int64))
        return {
            "processes": self.world.size,
            **new,
            "seeds": format_seeds(seeds),
            "images": len(seeds),
            "complete": False,
            "settings": self.settings,
        }

    def _list_unlisted(self) -> None:
        """Add records for unlisted images; batch size and NFE stay unknown."""
        seeds = self._contents.unlisted.tolist()
        for i in range(0, len(seeds), GROUP):
            group = seeds[i : i + GROUP]
            records = [self.files.record(s, self.files.path(s).read_bytes()) for s in group]
            self._log.append([one._replace(settings=self._key) for one in records])

    def _end(self) -> None:
        """Finish the run unless other shards still work on it; write the grid; tidy up."""
        if not self._has_work:
            grid = self.path / GRID
            if self.grid and self.kind not in ARCHIVES and not grid.exists():
                self._write_grid()
            self._tidy()
        elif self.shard is None:
            self._finish()
        else:
            self._finish_if_last()

    def _finish(self) -> None:
        """Pack the archive, write the manifest and mark the run complete.

        Raises ValueError if images are missing.
        """
        seeds = np.unique(np.asarray(parse_seeds(self.metadata["seeds"]), np.int64))
        self._contents = find_images(self.path, self.files, self.metadata, [])
        missing = np.setdiff1d(seeds, self._contents.present)
        if len(missing):
            raise ValueError(
                f"the images of the seeds {format_seeds_short(missing)} are missing in "
                f"{self.path}: run the same command again"
            )
        records = self._contents.records
        if len(self._contents.unlisted):
            self._list_unlisted()
            records = read_records(self.path, self._key)
        if self.grid:
            self._write_grid()
        records = records[np.isin(records["seed"], seeds)]
        pack(self.path, self.files, records, self._key)
        summary = summarize_records(records, self.metadata.get("batch"))
        kept = {name: value for name, value in self.metadata.items() if name not in DERIVED}
        self.metadata = kept | summary | {"complete": True}
        write_metadata(self.path, self.metadata)
        self._tidy()

    def _finish_if_last(self) -> None:
        """Finish the run if this shard is the last one to end."""
        from filelock import FileLock, Timeout  # late: a tenth of a second

        with suppress(Timeout), FileLock(self.path / LOCK, timeout=LOCK_TIMEOUT):
            self.metadata = read_metadata(self.path) or self.metadata
            if self.is_complete:  # another shard was faster
                self._tidy()
                return
            contents = find_images(self.path, self.files, self.metadata, [])
            if np.isin(parse_seeds(self.metadata["seeds"]), contents.present).all():
                self._finish()

    def _write_grid(self) -> None:
        seeds = self.seeds[:GRID_IMAGES]
        write_grid(self.path / GRID, [read_png(self.files.path(int(seed))) for seed in seeds])

    def _tidy(self) -> None:
        """Remove drafts of processes that were killed and, of a complete run, `.parts`."""
        if self.is_complete:
            shutil.rmtree(self.path / PARTS, ignore_errors=True)
            (self.path / LOCK).unlink(missing_ok=True)
        remove_drafts(self.path)

    def _abandon(self) -> None:
        """Remove what this process created of a run that failed before its first image.

        Other shards and processes may be writing to the folder, so only a single one does this.
        """
        if self.world.size > 1 or self.shard is not None or (self.path / RUN) not in self._created:
            return
        with suppress(OSError):  # a folder that is not empty stays
            is_empty = not any(IMAGE_NAME.fullmatch(f.name) for f in image_files(self.files.root))
            if is_empty and not has_records(self.path):
                if self.path / PARTS in self._created:
                    shutil.rmtree(self.path / PARTS)
                (self.path / RUN).unlink()
                if self.path in self._created:
                    self.path.rmdir()


def _call(function: Callable[..., Any], *args: Any) -> None:
    function(*args)

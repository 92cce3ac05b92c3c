"""The folder of a run: images named by seed, a log of them, and run.json.

An image counts as present when its file has the size that its line in a log gives; a file without
a line is not the run's. run.json fixes the settings, so a folder never mixes two. An archive is
packed from the PNG files, which lie in `.parts` until then. Locks keep processes apart.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from erk.generation.archives import ARCHIVES, pack, summarize_records
from erk.generation.contents import GRID, Contents, find_images, rank_share, remove_drafts
from erk.generation.images import IMAGE_NAME, image_files, png_bytes, read_png
from erk.generation.job import Labels, class_of
from erk.generation.locks import LOCK, FolderLocks
from erk.generation.manifest import PARTS, ImageLog, ImageRecord, record_of
from erk.generation.metadata import RUN, Metadata, claim, classes_of, read_metadata, write_metadata
from erk.generation.reading import open_images
from erk.generation.run_state import ALONE, RunState
from erk.generation.sampling import ImageBatch
from erk.generation.seeds import format_seeds, format_seeds_short, parse_seeds
from erk.generation.sheets import caption, grid
from erk.generation.writer import Submit, background, spare_cores, thread_map
from erk.io.atomic import make_folder, uninterrupted, write_file
from erk.io.files import sha256_of
from erk.runtime.distributed import World, barrier, broadcast
from erk.runtime.timing import OFF, Timer

GRID_IMAGES = 100
GROUP = 256  # images whose records are written at a time
DERIVED = ("nfe", "guide_nfe", "batches", "rounding", "archive_bytes", "archive_sha256")
"""Metadata that follow from the images."""


class RunFolder(RunState):
    """The output folder of a run, as a context manager.

    Entering it claims the folder; leaving it finishes the run (packs archives, writes the
    manifest, marks it complete), or, if an exception leaves the block before the first image is
    written, removes what this process created::

        with RunFolder.open(path, job) as run:
            for batch in generate(job, run.pending):
                run.write(batch)
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
        verify: bool = False,
    ) -> None:
        super().__init__(path, identity, seeds, metadata, shard=shard, verify=verify)
        self.batch, self.world, self.grid, self.timer = batch, world, grid, timer
        self.labels: Labels = "random"
        self._has_work = False
        self._key = ""  # hash of the settings and networks, in the records
        self._created: list[Path] = []
        self._locks = FolderLocks(path, shard)
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
        verify: bool = False,
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
        verify : bool
            Compare the sha256 of every image with its record; images that differ are pending.

        Raises
        ------
        ValueError
            If the folder cannot be used: other settings or networks, images of unknown origin,
            links, not writable, or an archive that is complete with other seeds.
        """
        run = cls(
            Path(path), job.identity, job.seeds, job.metadata, batch=job.batch, shard=shard,
            world=world, grid=grid, timer=timer, verify=verify,
        )  # fmt: skip
        run.labels = job.labels
        run.look()
        return run

    def prepare(self, job: Any, world: World = ALONE, timer: Timer = OFF) -> None:
        """Go on with the loaded networks of the plan that the folder was opened with.

        Raises ValueError if the folder is of a run with other networks.
        """
        self._new, self.world, self.timer = job.metadata, world, timer
        self._log.name = f"{self._log.name.rpartition('.')[0]}.{world.rank}"
        if self.metadata:
            self._check_same()

    def __enter__(self) -> "RunFolder":
        barrier(self.world)  # until every process has looked at the folder
        try:
            if self.world.rank == 0:
                self._claim()
            key = self.settings_key()
            pending, self._key = broadcast(self.world, (self.pending, key))  # after the claim
            if self._key != key:
                raise ValueError("the processes of this run have different settings: stop them")
            self.pending = rank_share(pending, self.batch, self.world)
            self._stack.enter_context(self.timer.host("wall"))
            if self.pending:
                self._map = self._stack.enter_context(thread_map(spare_cores()))
                waiting = functools.partial(self.timer.host, "waited")
                self._submit = self._stack.enter_context(background(waiting))
        except BaseException:
            self._stack.close()
            self._abandon()
            self._locks.release()
            raise
        self._contents = Contents()  # 100 bytes per seed
        return self

    def _claim(self) -> None:
        """Take this process's role in the folder and begin the run, unless nothing is to do.

        Raises ValueError if another process is at work there.
        """
        if self.is_complete and not self.pending and not self._has_leftovers():
            return
        if not self.path.exists():
            make_folder(self.path)
            self._created.append(self.path)
        with self._locks.brief():
            if self._state() != self._seen:  # another process has been faster
                self.look()
            self._locks.claim()
            self._has_work = bool(self.pending) or not self.is_complete
            if self.pending and self._new is None:
                raise ValueError("images are missing, the networks are not loaded: load the plan")
            self._key = self.settings_key()
            if self._has_work:
                self._begin()

    def _has_leftovers(self) -> bool:
        return self._lacks_grid() or any((self.path / one).exists() for one in (PARTS, LOCK))

    def _lacks_grid(self) -> bool:
        return self.grid and self.kind not in ARCHIVES and not (self.path / GRID).exists()

    def write(self, batch: ImageBatch) -> None:
        """Encode and write a batch in the background; blocks while two others wait.

        Raises what writing an earlier batch raised: OSError, among them FileNotFoundError if the
        folder has been removed.
        """
        self._submit(self._store, batch)

    def add(self, records: Sequence[ImageRecord], data: Sequence[bytes]) -> None:
        """Write records, then their PNG files; signals are deferred. Raises as `write`."""
        records = [self._addressed(one) for one in records]
        with uninterrupted(), self._still_exists():
            self._log.append(records)
            list(self._map(self.files.write, records, data))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            self._stack.__exit__(kind, error, traceback)  # writes what was submitted
            if error is None:
                barrier(self.world)
                if self.world.rank == 0 and self._locks.is_held:
                    with self._still_exists(), self._locks.brief():
                        self._end()
            elif isinstance(error, Exception):
                self._abandon()
        except Exception:
            self._abandon()
            raise
        finally:
            self._locks.release()

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
        """Write run.json, marked incomplete; restore records; remove images that differ."""
        if not (self.path / PARTS).exists():
            (self.path / PARTS).mkdir()
            self._created.append(self.path / PARTS)
        self._restore()
        begun = self._incomplete()
        if not self.metadata and claim(self.path, begun):
            self._created.append(self.path / RUN)
        else:
            write_metadata(self.path, begun)
        self.metadata = begun
        for seed in np.intersect1d(self._contents.differing, self.pending).tolist():
            self.files.path(seed).unlink(missing_ok=True)

    def _incomplete(self) -> Metadata:
        """Return the metadata of a run that begins, with the seeds of earlier runs.

        Of a shard or a complete run, these include seeds whose images do not exist.
        """
        earlier: Any = self._contents.present
        if self.metadata and (self.shard is not None or self.metadata["complete"]):
            earlier = parse_seeds(self.metadata["seeds"])
        seeds = np.union1d(np.asarray(self.seeds, np.int64), np.asarray(earlier, np.int64))
        new = self._new
        if new is None:
            new = {name: value for name, value in self.metadata.items() if name not in DERIVED}
        return {
            "processes": self.world.size,
            **new,
            "seeds": format_seeds(seeds),
            "images": len(seeds),
            "complete": False,
            "settings": self.settings,
        }

    def _restore(self) -> None:
        """Add records that a complete run has lost; unpack the sound images of its archive."""
        rows = self._contents.restored
        archive = self.path / ARCHIVES[self.kind] if self.kind in ARCHIVES else None
        if not len(rows):
            return
        with open_images(self.files, archive, parse_seeds(self.metadata["seeds"])) as read:
            for i in range(0, len(rows), GROUP):
                records = [record_of(row, "", "") for row in rows[i : i + GROUP]]
                if archive is None:
                    self._log.append([self._addressed(one) for one in records])
                    continue
                data = [read(one.seed) for one in records]
                sizes = zip(records, data, strict=True)
                self.add([one._replace(file_size=len(png)) for one, png in sizes], data)

    def _addressed(self, record: ImageRecord) -> ImageRecord:
        """Return a record with the name of its file and the hash of the settings."""
        return record._replace(file=self.files.name(record.seed), settings=self._key)

    def _end(self) -> None:
        """Finish the run unless other shards still work on it."""
        if not self._has_work:
            if self._lacks_grid():
                self._write_grid()
            self._tidy()
            return
        if self.shard is not None:
            self._locks.release()
            self.metadata, self._is_sound = read_metadata(self.path) or self.metadata, True
            if not self._locks.is_alone():  # the shard that ends last finishes the run
                return
            contents = find_images(self.path, self.files, self.metadata)
            if not np.isin(parse_seeds(self.metadata["seeds"]), contents.present).all():
                return
        self._finish()

    def _finish(self) -> None:
        """Pack the archive, write the manifest and mark the run complete.

        Raises ValueError if images are missing.
        """
        seeds = np.unique(np.asarray(parse_seeds(self.metadata["seeds"]), np.int64))
        contents = find_images(self.path, self.files, self.metadata)
        missing = np.setdiff1d(seeds, contents.present)
        if len(missing):
            raise ValueError(
                f"the images of the seeds {format_seeds_short(missing)} are missing in "
                f"{self.path}: run the same command again"
            )
        if self.grid:
            self._write_grid()
        records = contents.records[np.isin(contents.records["seed"], seeds)]
        pack(self.path, self.files, records, self._key)
        precision = str(self.settings.get("precision"))
        summary = summarize_records(records, self.metadata.get("batch"), precision)
        if self.kind in ARCHIVES:
            archive = self.path / ARCHIVES[self.kind]
            summary["archive_bytes"] = archive.stat().st_size
            summary["archive_sha256"] = sha256_of(archive)
        kept = {name: value for name, value in self.metadata.items() if name not in DERIVED}
        self.metadata, self._is_sound = kept | summary | {"complete": True}, True
        write_metadata(self.path, self.metadata)
        self._tidy()

    def _write_grid(self) -> None:
        seeds, count = self.seeds[:GRID_IMAGES], classes_of(self.metadata)
        classes = (class_of(self.labels, int(one), count) for one in seeds)
        images = [read_png(self.files.path(int(one))) for one in seeds]
        write_file(self.path / GRID, png_bytes(grid(images, [*map(caption, seeds, classes)])))

    def _tidy(self) -> None:
        """Remove drafts of processes that were killed and, of a complete run, `.parts`."""
        remove_drafts(self.path)
        if self.is_complete:
            shutil.rmtree(self.path / PARTS, ignore_errors=True)
            self._locks.remove()

    def _abandon(self) -> None:
        """Remove what this process created of a run that failed before its first image.

        Lines of a log without an image are worth nothing. Other shards and ranks may be writing to
        the folder, so only a single process does this.
        """
        if self.world.size > 1 or self.shard is not None or not self._created:
            return
        with suppress(OSError, ValueError):  # a folder with files of others stays
            if self._locks.is_held:
                with self._locks.brief():
                    self._remove_created()
            if self.path in self._created:
                self.path.rmdir()

    def _remove_created(self) -> None:
        """Remove the files that this process created, unless an image exists."""
        if any(IMAGE_NAME.fullmatch(file.name) for file in image_files(self.files.root)):
            return
        if self.path / PARTS in self._created:
            shutil.rmtree(self.path / PARTS)
        if self.path / RUN in self._created:
            (self.path / RUN).unlink()
        self._locks.remove()


def _call(function: Callable[..., Any], *args: Any) -> None:
    function(*args)

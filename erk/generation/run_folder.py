"""A run's folder: pictures named by seed, a manifest of them, and run.json on how they were made.

A picture counts as made when its line stands in a manifest (see manifest.py), which it does only
when it is whole on the disk; a run that was stopped makes the others. run.json fixes the settings:
a folder never mixes two.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from erk.generation.archives import ARCHIVES, put_together, read_packed, write_grid
from erk.generation.images import image_path, is_whole_png, png_bytes, read_png, row_bytes
from erk.generation.job import plain
from erk.generation.listing import PICTURE, STRAY, files_in, listed_seeds, seeds_there
from erk.generation.manifest import PARTS, Entry, Marks, Writer, entries, in_order, manifests, scan
from erk.generation.record import (
    NAME,
    check_same,
    check_writable,
    claim,
    read_record,
    settings_hash,
    write_record,
)
from erk.generation.seeds import few, format_seeds, parse_seeds
from erk.io.atomic import uninterrupted, write_file
from erk.runtime.timing import OFF

TOLD = ("nfe", "guide_nfe", "batches", "rounding")  # facts of a record that its pictures tell
LOCK = ".lock"  # of shards that end at the same time
PATIENCE = 3600  # seconds that a shard waits for one that is packing an archive
GROUP = 256  # pictures found without a line that are listed at a time


class RunFolder:
    """The output folder of one generation run; `check` looks at it and writes nothing.

    ``shard`` (i, n): this run makes every n-th seed, others the rest, perhaps in the same folder.
    ``rank``: of this process among those of the run.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        subdirs: bool,
        settings: dict[str, Any],
        shard: tuple[int, int] | None = None,
    ):
        self.folder, self.kind, self.subdirs, self.shard = folder, kind, subdirs, shard
        self.settings = json.loads(json.dumps(plain(settings)))
        self.rank = 0
        self.each: Callable[..., Any] = map  # over pictures that are encoded and written
        self.profile = OFF
        self.record: dict[str, Any] = {}
        self.is_new = False
        self.made = Marks([])
        self.unlisted: list[int] = []  # whole pictures without a line
        self._key = ""  # of the settings and networks, in the lines
        self._writer: Writer | None = None

    def check(self, seeds: Sequence[int]) -> list[int]:
        """The seeds of this shard still to make. Raises ValueError or OSError if this run may not
        use the folder."""
        check_writable(self.folder)
        if (self.folder / PARTS).is_symlink():
            raise ValueError(
                f"{self.folder / PARTS} is a link, so the run would write elsewhere: delete it"
            )
        self.record = read_record(self.folder) or {}
        if self.record:
            check_same(self.record, {"settings": self.settings}, self.folder / NAME)
        elif manifests(self.folder) or next(self.folder.rglob("*.png"), None) is not None:
            raise ValueError(
                f"{self.folder} holds pictures but no run.json that says how they were made; "
                "choose another --outdir."
            )
        if self.kind in ARCHIVES and self.record.get("complete"):
            self._check_finished(seeds)
            return []
        self._look(seeds)
        return [seed for seed in _share(seeds, self.shard) if seed not in self.made]

    def path(self, seed: int) -> Path:
        """Where the picture of a seed lies; an archive calls it so, below this folder."""
        return image_path(self.folder, seed, self.subdirs)

    def check_networks(self, facts: dict[str, Any]) -> None:
        """ValueError if the pictures that are there come from files of other content."""
        mine = facts | {"settings": self.settings}
        if self.record:
            check_same(self.record, mine, self.folder)
        self._key = settings_hash(mine)

    def begin(self, facts: dict[str, Any]) -> None:
        """Make the folder and write run.json, marked incomplete; seeds made earlier stay listed.

        ValueError if a run of other settings has begun in the folder meanwhile.
        """
        self.is_new = not self.folder.exists()
        (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
        if not self.record and not claim(self.folder, self._begun(facts)):
            self.check(parse_seeds(facts["seeds"]))
            self.check_networks(facts)
        self.record = self._begun(facts)
        write_record(self.folder, self.record)
        self._list_found(self.unlisted)

    def add(
        self,
        seeds: Sequence[int],
        images: Any,
        *,
        batch: int | None = None,
        nfe: float | None = None,
        guide_nfe: float | None = None,
    ) -> None:
        """Write pictures, uint8 [n, C, H, W], made ``batch`` at a time, as `put` does."""
        with self.profile.host("encode"):
            data = list(self.each(png_bytes, images))
        hashed = map(row_bytes, images) if self.kind == "npz" else data
        listed = [
            self._entry(seed, one)._replace(batch=batch, nfe=nfe, guide_nfe=guide_nfe)
            for seed, one in zip(seeds, hashed, strict=True)
        ]
        with self.profile.host("write"):
            self.put(listed, data)

    def put(self, listed: Sequence[Entry], data: Sequence[bytes]) -> None:
        """Write PNG files under the names of their seeds, then their entries; signals wait.

        Raises OSError, among them FileNotFoundError if the folder has vanished.
        """
        listed = [self._named(entry) for entry in listed]
        with uninterrupted(), self._still_there():
            if self.kind not in ARCHIVES:
                list(self.each(self._write, listed, data))
            self._list(listed, data)

    def images(self, seeds: Sequence[int]) -> list[Any]:
        """Pictures, uint8 [C, H, W] each, of a run that is not packed yet."""
        if self.kind not in ARCHIVES:
            return [read_png(self.path(seed)) for seed in seeds]
        lines = in_order(manifests(self.folder), True, Marks.of(seeds))
        found = {entry.seed: read_png(read_packed(entry, place)) for entry, place in entries(lines)}
        return [found[seed] for seed in seeds]

    def resume(self, seeds: Sequence[int]) -> None:
        """`begin` where nothing is left to sample, so that nobody has loaded the networks."""
        facts = self.record | {"seeds": format_seeds(seeds)}
        self.check_networks(facts)
        self.begin(facts)

    def finish(self, grid_of: Sequence[int] = ()) -> None:
        """Pack an archive if one was asked for, in order of seeds, and mark the run complete.

        ``grid_of``: seeds of a contact sheet. Raises ValueError if pictures are missing.
        """
        self._key = settings_hash(self.record)
        seeds = parse_seeds(self.record["seeds"])
        self._look(seeds, everyone=True)
        missing = [seed for seed in seeds if seed not in self.made]
        if missing:
            raise ValueError(
                f"{self.folder} lacks the pictures of the seeds {few(missing)}: run the same "
                "command again to make them"
            )
        self._list_found(self.unlisted)
        if grid_of:
            write_grid(self.folder, self.images(grid_of))
        lines = in_order(manifests(self.folder), self.kind in ARCHIVES, self.made)
        told = put_together(self.folder, self.kind, lines, self.record.get("batch"))
        self.record = {k: v for k, v in self.record.items() if k not in TOLD} | told
        self.record["complete"] = True
        write_record(self.folder, self.record)
        self.tidy()

    def finish_together(self, grid_of: Sequence[int] = ()) -> bool:
        """Of shards in one folder the one that ends last finishes it; whether it is finished."""
        from filelock import FileLock, Timeout  # late: a tenth of a second

        with suppress(Timeout), FileLock(self.folder / LOCK, timeout=PATIENCE):
            self.record = read_record(self.folder) or self.record
            if self.record["complete"]:  # another shard was quicker
                self.tidy()
                return True
            self._look(parse_seeds(self.record["seeds"]), everyone=True)
            if len(self.made) == len(self.made.seeds):
                self.finish(grid_of)
                return True
        return False

    def tidy(self) -> None:
        """Remove what a process that was killed left: temporary files, packed pictures."""
        if self.record.get("complete"):
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
            (self.folder / LOCK).unlink(missing_ok=True)
        for place in files_in(self.folder):
            if STRAY.fullmatch(place.name):
                with suppress(OSError):
                    os.unlink(place.path)

    def abandon(self) -> None:
        """Leave nothing behind of a run that failed before its first picture."""
        with suppress(OSError):  # a folder that holds something stays
            parts = manifests(self.folder)
            is_empty = not any(PICTURE.fullmatch(place.name) for place in files_in(self.folder))
            if is_empty and not any(True for path in parts for _ in scan(path)):
                shutil.rmtree(self.folder / PARTS)
                (self.folder / NAME).unlink()
                if self.is_new:
                    self.folder.rmdir()

    def _begun(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The record of a run that begins: its seeds, and those that were made before.

        The seeds that other shards are to make stay in it, too.
        """
        asked = parse_seeds(facts["seeds"])
        wanted = Marks.of(asked, among=self.made.seeds)
        earlier = self.made if self.shard is None else self.made.seeds
        for seed in earlier:
            wanted.add(seed)
        return {
            **facts,
            "seeds": format_seeds(list(wanted)),
            "images": len(wanted),
            "complete": False,
            "settings": self.settings,
        }

    def _look(self, seeds: Sequence[int], everyone: bool = False) -> None:
        """Find out which of these seeds and of the record's are made, and which lack their line.

        ``everyone``: also those that are another shard's to list.
        """
        every: Sequence[int] = seeds
        if self.record:
            earlier = parse_seeds(self.record["seeds"])
            every = seeds if earlier == seeds else sorted({*earlier, *seeds})
        key = settings_hash(self.record) if self.record else ""
        self.made, self.unlisted = listed_seeds(self.folder, key, self.kind in ARCHIVES, every), []
        if self.kind not in ARCHIVES:
            there, listed = seeds_there(self.folder, self.subdirs, every), self.made
            mine = there if everyone or self.shard is None else Marks.of(_share(seeds, self.shard))
            self.unlisted = [
                seed for seed in there
                if seed not in listed and seed in mine and is_whole_png(self.path(seed))
            ]  # fmt: skip
            self.made = there & listed
            for seed in self.unlisted:
                self.made.add(seed)

    @contextmanager
    def _still_there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.folder} has been removed or renamed while the run wrote to it: what it "
                "held is lost unless you put it back; then run the same command again"
            ) from error

    def _write(self, entry: Entry, data: bytes) -> None:
        place = self.folder / entry.file
        if self.subdirs:
            place.parent.mkdir(exist_ok=True)
        write_file(place, data)

    def _entry(self, seed: int, data: bytes) -> Entry:
        return self._named(Entry(seed, "", hashlib.sha256(data).hexdigest(), ""))

    def _named(self, entry: Entry) -> Entry:
        """The entry as it stands in this folder's manifests."""
        file = self.path(entry.seed).relative_to(self.folder).as_posix()
        return entry._replace(file=file, settings=self._key, at=None, bytes=None)

    def _list(self, listed: Sequence[Entry], data: Sequence[bytes]) -> None:
        if self._writer is None:
            i, n = self.shard or (0, 1)
            name = f"{i}-of-{n}.{self.rank}"
            self._writer = Writer(self.folder / PARTS, name, self.kind in ARCHIVES)
        self._writer.add(listed, data)

    def _list_found(self, seeds: Sequence[int]) -> None:
        """Give pictures that are there their lines; what made them is not known any more."""
        for i in range(0, len(seeds), GROUP):
            group = seeds[i : i + GROUP]
            self._list([self._entry(s, self.path(s).read_bytes()) for s in group], [])
        self.unlisted = []

    def _check_finished(self, seeds: Sequence[int]) -> None:
        there = Marks.of(parse_seeds(self.record["seeds"]))
        if not all(seed in there for seed in seeds):
            raise ValueError(
                f"{self.folder / ARCHIVES[self.kind]} is finished with the seeds "
                f"{self.record['seeds']}; choose another --outdir for other seeds."
            )


def _share(seeds: Sequence[int], shard: tuple[int, int] | None) -> Sequence[int]:
    """Every n-th of the seeds, for the shard (i, n); None: all of them."""
    return seeds if shard is None else seeds[shard[0] :: shard[1]]

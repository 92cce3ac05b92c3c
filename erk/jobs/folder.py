"""A run's folder: pictures named by seed, and run.json, which says how each was made.

A picture that is there is whole (see `images.write_whole`), so a run that was stopped goes on by
making the missing seeds. run.json fixes the settings: a folder never mixes two.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli import parse_seeds
from .images import image_path, pack_npz, pack_zip, png_bytes, write_whole

ARCHIVES = {"zip": "images.zip", "npz": "images.npz"}
STRAY = re.compile(r"\.(\d{6,}\.png|grid\.png|run\.json|images\.(zip|npz))\.\d+\.tmp")
"""Names of the temporary files of `images.write_whole` and of the archives in a run's folder."""


class RunFolder:
    """The output folder of one generation run; `check` looks at it and writes nothing."""

    def __init__(self, folder: Path, kind: str, subdirs: bool, settings: dict[str, Any]):
        self.folder, self.kind, self.subdirs = folder, kind, subdirs
        self.settings = json.loads(json.dumps(plain(settings)))
        self.pictures = folder if kind == "png" else folder / ".pictures"
        self.record: dict[str, Any] = {}
        self.is_new = False

    def check(self, seeds: Sequence[int]) -> list[int]:
        """The seeds still to make. ValueError or OSError if this run may not use the folder."""
        check_writable(self.folder)
        place = self.folder / "run.json"
        if place.is_file():
            self.record = _read_record(place)
            self._check_settings(place)
        elif next(self.folder.rglob("*.png"), None) is not None:
            raise ValueError(
                f"{self.folder} holds pictures but no run.json that says how they were made; "
                "choose another --outdir."
            )
        if self.kind in ARCHIVES and self.record.get("complete"):
            if not {*seeds} <= {*parse_seeds(self.record["seeds"])}:
                raise ValueError(
                    f"{self.folder / ARCHIVES[self.kind]} is finished with the seeds "
                    f"{self.record['seeds']}; choose another --outdir for other seeds."
                )
            return []
        return [seed for seed in seeds if not self.path(seed).exists()]

    def path(self, seed: int) -> Path:
        """Where the picture of a seed lies while the run goes on."""
        return image_path(self.pictures, seed, self.subdirs)

    def check_networks(self, facts: dict[str, Any]) -> None:
        """ValueError if the pictures that are there come from files of other content."""
        for role in ("network", "guide"):
            old, new = self.record.get(role), facts[role]
            if old and new and old["sha256"] != new["sha256"]:
                raise ValueError(
                    f"{self.folder} is of a run with another {role} of the same file name (sha256 "
                    f"{old['sha256'][:12]} there, {new['sha256'][:12]} here); choose another "
                    "--outdir."
                )

    def begin(self, facts: dict[str, Any]) -> None:
        """Make the folder and write run.json, marked incomplete; seeds made earlier stay listed."""
        self.is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pictures.mkdir(exist_ok=True)
        old = self.record
        earlier = parse_seeds(old["seeds"]) if old else []
        made = [seed for seed in earlier if self.path(seed).exists()]
        seeds = {*parse_seeds(facts["seeds"]), *made}
        self.record = {
            **facts,
            **{name: old[name] for name in ("nfe", "guide_nfe", "nfe_images") if name in old},
            "seeds": format_seeds(sorted(seeds)),
            "images": len(seeds),
            "complete": False,
            "settings": self.settings,
        }
        self._write_record()

    def note(self, facts: dict[str, Any]) -> None:
        """Add facts to run.json."""
        if any(self.record.get(name) != value for name, value in facts.items()):
            self.record.update(facts)
            self._write_record()

    def note_average(self, count: int, nfe: float, guide_nfe: float) -> None:
        """Put evaluations per picture into run.json: sums over `count` pictures made now.

        `nfe_images` says how many pictures the average covers; a killed run's are not in it.
        """
        before = self.record.get("nfe_images", 0)
        told = {"nfe_images": before + count}
        for name, total in (("nfe", nfe), ("guide_nfe", guide_nfe)):
            earlier = before * self.record.get(name, 0)
            told[name] = (earlier + total) / (before + count)
        self.note(told)

    def abandon(self) -> None:
        """Leave nothing behind of a run that failed before its first picture."""
        with contextlib.suppress(OSError):  # a folder that holds something stays
            if not any(self.pictures.rglob("*.png")):
                (self.folder / "run.json").unlink()
                if self.pictures != self.folder:
                    self.pictures.rmdir()
                if self.is_new:
                    self.folder.rmdir()

    def tidy(self) -> None:
        """Remove what a process that was killed left: temporary files, packed pictures."""
        if self.kind in ARCHIVES and self.record.get("complete"):
            shutil.rmtree(self.pictures, ignore_errors=True)
        for stray in self.folder.rglob(".*.tmp"):
            if STRAY.fullmatch(stray.name):
                stray.unlink(missing_ok=True)

    def add(self, seed: int, image: Any) -> None:
        """Write one picture, uint8 [C, H, W]."""
        place = self.path(seed)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, png_bytes(image))

    def finish(self) -> None:
        """Pack an archive if one was asked for, in order of seeds, and mark the run complete."""
        seeds = parse_seeds(self.record["seeds"])
        pictures = [self.path(seed) for seed in seeds]
        if self.kind == "zip":
            pack_zip(self.folder / ARCHIVES["zip"], pictures, self.pictures)
        if self.kind == "npz":
            pack_npz(self.folder / ARCHIVES["npz"], pictures, seeds)
        self.record["complete"] = True
        self._write_record()
        self.tidy()

    def _write_record(self) -> None:
        write_whole(self.folder / "run.json", (json.dumps(self.record, indent=1) + "\n").encode())

    def _check_settings(self, place: Path) -> None:
        old = self.record["settings"]
        differing = sorted(k for k in {*old, *self.settings} if old.get(k) != self.settings.get(k))
        if differing:
            pairs = [f"{k} {old.get(k)} there, {self.settings.get(k)} here" for k in differing]
            raise ValueError(
                f"{place} is of a run with other settings ({'; '.join(pairs)}); "
                "choose another --outdir."
            )


def check_writable(folder: Path) -> None:
    """ValueError if `folder` cannot be made or written to. Nothing is written to find out."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "is not a folder" if not place.is_dir() else "is not writable"
        raise ValueError(f"cannot write to {folder}: {place} {reason}; choose another place.")


def format_seeds(seeds: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> '0-2,7'."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)


def plain(value: Any) -> Any:
    """The value as JSON can hold it; infinities and types of numbers become their names."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def _read_record(place: Path) -> dict[str, Any]:
    try:
        record = json.loads(place.read_text())
        if isinstance(record["settings"], dict) and isinstance(record["complete"], bool):
            parse_seeds(record["seeds"])
            return record
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{place} is not the record of a run; choose another --outdir.")

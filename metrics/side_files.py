"""Files beside images: run.json of a run and EDM's dataset.json.

They are not needed to measure images, so a file that cannot be read is a note, not an error.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from erk.io.files import read_regular
from erk.io.untrusted import CHUNK, parse_json

RUN, DATASET = "run.json", "dataset.json"
RUN_BYTES = CHUNK  # largest run.json that is read
BYTES_PER_IMAGE = 512  # of a dataset.json, beyond CHUNK

Read = Callable[[str, int], bytes | None]
"""(name, largest size) -> the bytes of a side file; None: there is none."""


def read_beside(folder: Path) -> Read:
    """Return a reader of the side files in a folder."""

    def read(name: str, limit: int) -> bytes | None:
        try:
            return read_regular(folder / name, limit)
        except FileNotFoundError:
            return None

    return read


def read_run(read: Read, notes: list[str]) -> dict[str, Any]:
    """Return run.json, {} where there is none; add a note on one that is ignored."""
    run = _content(read, RUN, RUN_BYTES, notes)
    if run is None:
        return {}
    if not isinstance(run, dict) or not isinstance(run.get("settings", {}), dict):
        notes.append(f"{RUN} is not that of a run and is ignored")
        return {}
    return run


def read_labels(read: Read, names: Sequence[str], notes: list[str]) -> list[int] | None:
    """Return the class of each image by dataset.json, None where it gives none; add a note."""
    table = _content(read, DATASET, CHUNK + BYTES_PER_IMAGE * len(names), notes)
    if table is None or not names:
        return None
    try:
        return _labels(table, names)
    except ValueError as error:
        notes.append(f"{DATASET} gives no classes: {error}")
        return None


def _content(read: Read, name: str, limit: int, notes: list[str]) -> Any:
    """Return the JSON of a side file; None, with a note, if it cannot be read."""
    try:
        data = read(name, limit)
        return None if data is None else parse_json(data)
    except (ValueError, OSError) as error:
        notes.append(f"{name} cannot be read and is ignored: {error}")
        return None


def _labels(table: Any, names: Sequence[str]) -> list[int] | None:
    """Return the classes of EDM's table, {"labels": [[name, class], ...] or null}."""
    rows = table.get("labels") if isinstance(table, dict) else []
    if rows is None:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("its labels are no list of [name, class]")
    known: dict[str, Any] = {}
    for name, label in (row for row in rows if len(row) == 2 and isinstance(row[0], str)):
        if known.setdefault(name, label) != label:
            raise ValueError(f"it gives {name} two classes, {known[name]} and {label}")
    for name in names:
        if name not in known:
            raise ValueError(f"it does not name {name}")
        if not is_class(known[name]):
            raise ValueError(f"{str(known[name])[:40]} is no class 0, 1, 2, ...")
    return [known[name] for name in names]


def is_class(value: Any) -> bool:
    """Return whether a value from a file is a class, an int of at least 0."""
    return type(value) is int and 0 <= value < 1 << 31

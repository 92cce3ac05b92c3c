"""run.json: how the pictures of a folder were made, and whether all of them are there."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from erk.generation.seeds import parse_seeds
from erk.io.atomic import write_file, write_new_file
from erk.io.untrusted import parse_json

Record = dict[str, Any]
NAME = "run.json"


def read_record(folder: Path) -> Record | None:
    """The record in a folder; None if there is none. ValueError if it is not a run's."""
    place = folder / NAME
    try:
        record = parse_json(place.read_bytes())
        if _is_record(record):
            parse_seeds(record["seeds"])
            return record
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    raise ValueError(f"{place} is not the record of a run; choose another --outdir.")


def _is_record(record: Any) -> bool:
    """Whether all that we use of a record has its type."""
    types = {"settings": dict, "complete": bool, "seeds": str}
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(name), kind) for name, kind in types.items())
        and isinstance(record.get("batch"), int | None)
        and all(_is_network(record.get(role)) for role in ("network", "guide"))
    )


def _is_network(facts: Any) -> bool:
    return facts is None or (isinstance(facts, dict) and isinstance(facts.get("sha256"), str))


def write_record(folder: Path, record: Record) -> None:
    """Write run.json, whole or not at all."""
    write_file(folder / NAME, _encoded(record))


def claim(folder: Path, record: Record) -> bool:
    """Write run.json unless there is one: of runs that begin at the same time one wins.

    Where the file system knows no hard links the last one does.
    """
    return write_new_file(folder / NAME, _encoded(record))


def _encoded(record: Record) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def check_same(
    old: Record, new: Record, place: Path, advice: str = "choose another --outdir"
) -> None:
    """ValueError, with the differing keys, if two runs' settings or networks are not the same."""
    there, here = old["settings"], new["settings"]
    differing = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    if differing:
        pairs = [f"{k} {there.get(k)} there, {here.get(k)} here" for k in differing]
        raise ValueError(f"{place} is of a run with other settings ({'; '.join(pairs)}); {advice}.")
    for role in ("network", "guide"):
        known, own = old.get(role), new.get(role)
        if known and own and known["sha256"] != own["sha256"]:
            raise ValueError(
                f"{place} is of a run with another {role} of the same file name (sha256 "
                f"{known['sha256'][:12]} there, {own['sha256'][:12]} here); {advice}."
            )


def settings_hash(record: Record) -> str:
    """16 hexadecimal digits for all settings and the networks' bytes, as manifests hold them."""
    networks = [(record.get(role) or {}).get("sha256") for role in ("network", "guide")]
    told = json.dumps([record["settings"], networks], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def check_writable(folder: Path) -> None:
    """ValueError if `folder` cannot be made or written to. Nothing is written to find out."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "is not a folder" if not place.is_dir() else "is not writable"
        raise ValueError(f"cannot write to {folder}: {place} {reason}; choose another place.")

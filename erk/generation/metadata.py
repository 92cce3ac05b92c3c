"""run.json: the settings, networks and versions of a run, and whether it is complete."""

import hashlib
import json
from pathlib import Path
from typing import Any

from erk.generation.seeds import parse_seeds
from erk.io.atomic import write_file, write_new_file
from erk.io.files import read_regular
from erk.io.untrusted import parse_json

Metadata = dict[str, Any]
RUN = "run.json"


def read_metadata(folder: Path) -> Metadata | None:
    """Read run.json; None if it is missing. Raises ValueError if it is not that of a run."""
    path = folder / RUN
    try:
        metadata = parse_json(read_regular(path))
        if _is_valid(metadata):
            parse_seeds(metadata["seeds"])
            return metadata
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    raise ValueError(f"{path} is not the metadata of a run; choose another --outdir.")


def _is_valid(metadata: Any) -> bool:
    """Whether all values that are used have the right type."""
    types = {"settings": dict, "complete": bool, "seeds": str}
    return (
        isinstance(metadata, dict)
        and all(isinstance(metadata.get(name), kind) for name, kind in types.items())
        and isinstance(metadata.get("batch"), int | None)
        and all(_is_network(metadata.get(role)) for role in ("network", "guide"))
    )


def _is_network(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and isinstance(value.get("sha256"), str))


def classes_of(metadata: Metadata) -> int:
    """Return the number of classes of a run's network; 0 where it is not recorded."""
    count = (metadata.get("network") or {}).get("classes", 0)
    return count if type(count) is int else 0


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write run.json atomically."""
    write_file(folder / RUN, _encode(metadata))


def claim(folder: Path, metadata: Metadata) -> bool:
    """Write run.json unless it exists; return whether this call created it."""
    return write_new_file(folder / RUN, _encode(metadata))


def _encode(metadata: Metadata) -> bytes:
    return (json.dumps(metadata, indent=1) + "\n").encode()


def check_same(
    old: Metadata, new: Metadata, path: Path, advice: str = "choose another --outdir"
) -> None:
    """Raise ValueError, naming what differs, if settings, networks or versions of two runs differ.

    Networks and versions are compared where both runs know theirs.
    """
    there, here = old["settings"], new["settings"]
    differing = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    if differing:
        pairs = [f"{k} {there.get(k)} there, {here.get(k)} here" for k in differing]
        raise ValueError(f"{path} is of a run with other settings ({'; '.join(pairs)}); {advice}.")
    for role in ("network", "guide"):
        first, second = old.get(role), new.get(role)
        if first and second and first["sha256"] != second["sha256"]:
            raise ValueError(
                f"{path} is of a run with another {role} of the same file name (sha256 "
                f"{first['sha256'][:12]} there, {second['sha256'][:12]} here); {advice}."
            )
    versions = [metadata.get("sampling_version") for metadata in (old, new)]
    if None not in versions and versions[0] != versions[1]:
        raise ValueError(
            f"{path} is of a run by version {versions[0]} of the sampler, this is version "
            f"{versions[1]} and gives other images; {advice}."
        )


def settings_hash(metadata: Metadata) -> str:
    """Hash all settings and the networks' sha256 into 16 hexadecimal digits, as logs hold them."""
    networks = [(metadata.get(role) or {}).get("sha256") for role in ("network", "guide")]
    content = json.dumps([metadata["settings"], networks], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]

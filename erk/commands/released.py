"""All networks that NVIDIA released, 51 of EDM2 and 12 of EDM, converted in one go.

The hashes of what is downloaded are recorded in DEST/hashes.json when it is first seen and found to
be a network, and hold for every later run, on whatever mirror.
"""

import fnmatch
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
from filelock import FileLock, Timeout

from erk.io.atomic import write_file
from erk.io.download import fetch, sha256_of
from erk.models.checkpoint import NETWORKS, Part
from erk.models.presets import presets
from erk.runtime.memory import without_weights
from metrics.table import to_text

SERVER = "https://nvlabs-fi-cdn.nvidia.com"
HASHES = "hashes.json"
WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
"""model_channels of EDM2's sizes (Karras et al. 2024, Table 6)."""
DDPMPP = {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1,
          "resample_filter": [1, 1]}  # fmt: skip
NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
          "resample_filter": [1, 3, 3, 1]}  # fmt: skip
CLASSES = {"cifar10-uncond": 0, "cifar10-cond": 10, "ffhq": 0, "afhqv2": 0, "imagenet": 1000}
BASELINES = {"vp": "VPPrecond", "ve": "VEPrecond", "adm": "iDDPMPrecond"}

Convert = Callable[[str, Path, bool], str]


class Released(NamedTuple):
    """A file on NVIDIA's server."""

    name: str
    url: str
    size: int  # bytes of its tensors, computed from their shapes


def released_files(patterns: tuple[str, ...] = (), mirror: str | None = None) -> list[Released]:
    """The files of configs/models.yaml that lie on NVIDIA's server, each once.

    patterns: of names, as of a shell; none: all. mirror: a server that takes NVIDIA's place.
    ValueError for a pattern without a file.
    """
    places = [place for preset in presets().values() for place in (preset.net, preset.gnet)]
    urls = {url.rpartition("/")[2]: url for url in places if url and url.startswith(SERVER)}
    for pattern in patterns:
        if not fnmatch.filter(urls, pattern):
            raise ValueError(f"--only {pattern} fits none of the {len(urls)} released files")
    chosen = [n for n in urls if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]
    server = SERVER if mirror is None else mirror.rstrip("/")
    return [Released(n, server + urls[n].removeprefix(SERVER), size_of(n)) for n in chosen]


def released_architecture(name: str) -> Part:
    """The network in a released file, by the file's name; ValueError for another name."""
    if found := re.fullmatch(r"edm2-img(64|512)-(\w+?)(-uncond)?-\d+-[\d.]+\.pkl", name):
        kind, size, uncond = found.groups()
        kwargs = {"img_resolution": 64, "img_channels": 4 if kind == "512" else 3,
                  "label_dim": 0 if uncond else 1000, "model_channels": WIDTHS[size]}  # fmt: skip
        return Part("Precond", kwargs)
    found = re.fullmatch(r"(edm|baseline)-(\w+)-(\d+)x\d+-(\w+)-(vp|ve|adm)\.pkl", name)
    if not found:
        raise ValueError(f"{name} is not the name of a released file")
    which, data, res, cond, kind = found.groups()
    classes = next(n for key, n in CLASSES.items() if f"{data}-{cond}".startswith(key))
    kwargs = {"img_resolution": int(res), "img_channels": 3, "label_dim": classes}
    if kind == "adm":
        kwargs |= {"model_type": "DhariwalUNet"}
    else:
        kwargs |= {"model_type": "SongUNet", **(DDPMPP if kind == "vp" else NCSNPP)}
        kwargs |= {"channel_mult": [2, 2, 2] if res == "32" else [1, 2, 2, 2]}
        kwargs |= {"augment_dim": 9 if which == "edm" else 0}
    return Part("EDMPrecond" if which == "edm" else BASELINES[kind], kwargs)


def size_of(name: str) -> int:
    """Bytes of a released file's tensors: float16 in EDM2's files, float32 in EDM's."""
    return _size_of(re.sub(r"-\d+-[\d.]+\.pkl", "-0-0.pkl", name))


@functools.cache
def _size_of(name: str) -> int:
    kind, kwargs = released_architecture(name)
    with without_weights():
        state = NETWORKS[kind](**kwargs).state_dict()
    return sum(t.numel() for t in state.values()) * (2 if kind == "Precond" else 4)


def describe(files: list[Released], dest: Path | None) -> str:
    """What --dry-run prints: each file, its size, and whether it is done."""
    hashes = {} if dest is None else read_hashes(dest)
    rows, rest = [], 0
    for file in files:
        is_done = dest is not None and _is_made(file, dest, hashes)
        rest += 0 if is_done else file.size
        state = "done" if is_done else "hash known" if file.name in hashes else ""
        rows.append({"file": file.name, "MB": f"{file.size / 1e6:.1f}", "state": state})
    total = sum(file.size for file in files)
    note = (
        f"{len(files)} files, {total / 1e9:.1f} GB; {rest / 1e9:.1f} GB are left to download, and "
        "as much again is written.\nSizes are computed from the shapes of the tensors (2 bytes per "
        "number in EDM2's files, 4 in EDM's); nothing was asked of the server."
    )
    if dest is not None:
        place = next(p for p in (dest.absolute(), *dest.absolute().parents) if p.exists())
        note += f"\nFree at {dest}: {shutil.disk_usage(place).free / 1e9:.1f} GB."
    return f"{to_text(rows)}{note}"


def convert_all(files: list[Released], dest: Path, convert: Convert, offline: bool) -> None:
    """Download and convert what is not done yet; one line per file.

    A file that fails does not stop the others; OSError at the end names those that failed.
    """
    dest.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(dest / f".{HASHES}.lock", timeout=0):
            failed = [file for file in files if not _tried(file, dest, convert, offline)]
    except Timeout:
        raise OSError(f"another run converts into {dest}: wait for its end") from None
    if failed:
        names = ", ".join(file.name for file in failed)
        raise OSError(
            f"{len(failed)} of {len(files)} files were not converted ({names}): see above, then "
            "run the same command again"
        )
    click.echo(f"all {len(files)} files are in {dest}")


def read_hashes(dest: Path) -> dict[str, dict[str, str]]:
    """{file: {"pickle": sha256, "safetensors": sha256}} as recorded; {} if nothing is."""
    place = dest / HASHES
    try:
        told: Any = json.loads(place.read_text("utf-8"))
        return {str(name): dict(hashes) for name, hashes in told.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is no record of hashes: restore or delete it") from error


def _tried(file: Released, dest: Path, convert: Convert, offline: bool) -> bool:
    try:
        click.echo(_converted(file, dest, convert, offline))
    except (OSError, ValueError, MemoryError) as error:
        click.echo(f"failed: {file.name}: {error}", err=True)
        return False
    return True


def _converted(file: Released, dest: Path, convert: Convert, offline: bool) -> str:
    hashes = read_hashes(dest)
    known, out = hashes.get(file.name, {}), _output(file, dest)
    if _is_made(file, dest, hashes):
        if sha256_of(out) != known["safetensors"]:
            raise ValueError(f"{out} is not what {HASHES} recorded: delete it to make it anew")
        return f"{out} is done"
    try:
        source = fetch(file.url, known.get("pickle"), offline)
    except ValueError as error:
        raise ValueError(f"{error} ({HASHES} holds the hash of the first download)") from None
    try:
        told = convert(str(source), out, offline)
    except ValueError as error:  # not a sound file, so not one to stand for its name
        source.unlink()
        raise ValueError(f"{error} It was removed from the cache.") from error
    hashes[file.name] = {"pickle": sha256_of(source), "safetensors": sha256_of(out)}
    write_file(dest / HASHES, (json.dumps(hashes, indent=1) + "\n").encode())
    return told


def _is_made(file: Released, dest: Path, hashes: dict[str, dict[str, str]]) -> bool:
    out = _output(file, dest)
    is_there = out.is_file() and out.with_suffix(".json").is_file()
    return is_there and "safetensors" in hashes.get(file.name, {})


def _output(file: Released, dest: Path) -> Path:
    return dest / f"{file.name.removesuffix('.pkl')}.safetensors"

"""All networks that NVIDIA released, 51 of EDM2 and 12 of EDM: their list and their conversion.

The hash of a download is recorded in DEST/hashes.json once it was read as a network; every later
run, from whatever mirror, must download the same bytes.
"""

import fnmatch
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from erk.io.atomic import write_file
from erk.io.download import fetch
from erk.io.files import read_regular, sha256_of
from erk.io.untrusted import parse_json
from erk.models.checkpoint import NETWORKS, Part
from erk.models.convert import convert
from erk.models.presets import presets
from erk.runtime.memory import without_weights

SERVER = "https://nvlabs-fi-cdn.nvidia.com"
HASHES = "hashes.json"
WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
"""model_channels of EDM2's sizes (Karras et al. 2024, Table 6)."""
DDPMPP: dict[str, Any] = {
    "embedding_type": "positional",
    "encoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
CLASSES = {"cifar10-uncond": 0, "cifar10-cond": 10, "ffhq": 0, "afhqv2": 0, "imagenet": 1000}
BASELINES = {"vp": "VPPrecond", "ve": "VEPrecond", "adm": "iDDPMPrecond"}

Report = Callable[..., None]  # (line, err=False): print a line, on stderr if err


class Released(NamedTuple):
    """A file on NVIDIA's server."""

    name: str
    url: str
    size: int  # bytes of its tensors, computed from their shapes


def released_files(patterns: tuple[str, ...] = (), mirror: str | None = None) -> list[Released]:
    """Return the files of configs/models.yaml that are on NVIDIA's server, each once.

    Parameters
    ----------
    patterns : tuple of str
        Shell patterns of names, such as edm2-img512-xs-*; none selects all files.
    mirror : str, optional
        A server to use instead of NVIDIA's.

    Raises
    ------
    ValueError
        A pattern matches no file.
    """
    addresses = [name for preset in presets().values() for name in (preset.net, preset.gnet)]
    urls = {url.rpartition("/")[2]: url for url in addresses if url and url.startswith(SERVER)}
    for pattern in patterns:
        if not fnmatch.filter(urls, pattern):
            raise ValueError(
                f"--only {pattern} matches none of the {len(urls)} released files: erk convert "
                "--all --dry-run lists them"
            )
    chosen = [n for n in urls if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]
    server = SERVER if mirror is None else mirror.rstrip("/")
    return [Released(n, server + urls[n].removeprefix(SERVER), size_of(n)) for n in chosen]


def released_architecture(name: str) -> Part:
    """Return the network in a released file, from the file's name. Raises ValueError."""
    if match := re.fullmatch(r"edm2-img(64|512)-(\w+?)(-uncond)?-\d+-[\d.]+\.pkl", name):
        kind, size, uncond = match.groups()
        kwargs: dict[str, Any] = {"img_resolution": 64, "img_channels": 4 if kind == "512" else 3,
                  "label_dim": 0 if uncond else 1000, "model_channels": WIDTHS[size]}  # fmt: skip
        return Part("Precond", kwargs)
    match = re.fullmatch(r"(edm|baseline)-(\w+)-(\d+)x\d+-(\w+)-(vp|ve|adm)\.pkl", name)
    if not match:
        raise ValueError(f"{name} is not the name of a released file")
    which, data, res, cond, kind = match.groups()
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
    """Return the bytes of a released file's tensors: float16 in EDM2's files, float32 in EDM's."""
    return _size_of(re.sub(r"-\d+-[\d.]+\.pkl", "-0-0.pkl", name))


@functools.cache
def _size_of(name: str) -> int:
    kind, kwargs = released_architecture(name)
    with without_weights():
        state = NETWORKS[kind](**kwargs).state_dict()
    return sum(t.numel() for t in state.values()) * (2 if kind == "Precond" else 4)


def progress(files: list[Released], dest: Path | None) -> list[dict[str, str]]:
    """Return one row per file: its name, its size in MB, and whether it is converted."""
    hashes = {} if dest is None else read_hashes(dest)
    rows = []
    for file in files:
        is_done = dest is not None and _is_converted(file, dest, hashes)
        state = "done" if is_done else "hash known" if file.name in hashes else ""
        rows.append({"file": file.name, "MB": f"{file.size / 1e6:.1f}", "state": state})
    return rows


def convert_all(files: list[Released], dest: Path, offline: bool, report: Report) -> None:
    """Download and convert the files that are not converted yet; report one line per file.

    A file that fails does not stop the others. Raises OSError at the end, with the names of those
    that failed.
    """
    dest.mkdir(parents=True, exist_ok=True)
    failed = []
    try:
        with FileLock(dest / f".{HASHES}.lock", timeout=0):
            for file in files:
                try:
                    report(_converted(file, dest, offline))
                except (OSError, ValueError, MemoryError) as error:
                    report(f"failed: {file.name}: {error}", err=True)
                    failed.append(file)
    except Timeout:
        raise OSError(f"another run converts into {dest}: wait for its end") from None
    if failed:
        names = ", ".join(file.name for file in failed)
        raise OSError(
            f"{len(failed)} of {len(files)} files were not converted ({names}): see above, then "
            "run the same command again"
        )
    report(f"all {len(files)} files are in {dest}")


def read_hashes(dest: Path) -> dict[str, dict[str, str]]:
    """Return the recorded {file: {"pickle": sha256, "safetensors": sha256}}; {} without records."""
    path = dest / HASHES
    try:
        content: Any = parse_json(read_regular(path))
        return {name: {kind: str(one) for kind, one in hashes.items()}
                for name, hashes in content.items()}  # fmt: skip
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of hashes: restore or delete it") from error


def _converted(file: Released, dest: Path, offline: bool) -> str:
    """Return a line on the file, downloaded and converted unless that was done before."""
    hashes = read_hashes(dest)
    known, out = hashes.get(file.name, {}), _output(file, dest)
    if _is_converted(file, dest, hashes):
        if sha256_of(out) != known["safetensors"]:
            raise ValueError(f"{out} is not what {HASHES} recorded: delete it, then run this again")
        return f"{out} is done"
    try:
        source = fetch(file.url, known.get("pickle"), offline)
    except ValueError as error:
        raise ValueError(f"{error} ({HASHES} holds the hash of the first download)") from None
    try:
        line = convert(str(source), out, offline)
    except ValueError as error:  # a damaged file: its hash must not be recorded
        source.unlink()
        raise ValueError(f"{error} It was removed from the cache.") from error
    hashes[file.name] = {"pickle": sha256_of(source), "safetensors": sha256_of(out)}
    write_file(dest / HASHES, (json.dumps(hashes, indent=1) + "\n").encode())
    return line


def _is_converted(file: Released, dest: Path, hashes: dict[str, dict[str, str]]) -> bool:
    out = _output(file, dest)
    is_there = out.is_file() and out.with_suffix(".json").is_file()
    return is_there and "safetensors" in hashes.get(file.name, {})


def _output(file: Released, dest: Path) -> Path:
    return dest / f"{file.name.removesuffix('.pkl')}.safetensors"

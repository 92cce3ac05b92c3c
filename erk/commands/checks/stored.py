"""Files that must be what they were: the cache, the weights that come with the repository."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from erk.commands.checks.row import Row, few, told
from erk.io.download import cache_dir, hash_record, sha256_of

CHECKPOINTS = Path(__file__).resolve().parents[3] / "checkpoints"
RESTORE = "git restore checkpoints"
FULL, SCARCE = 2**30, 10 * 2**30  # bytes free: too few to work; few for images or large networks


def space() -> Iterator[Row]:
    """Free bytes where downloads and images go."""
    rows = []
    for what, place in (("the cache", cache_dir()), ("this folder", Path.cwd())):
        free = shutil.disk_usage(standing(place)).free
        text = f"{free / 2**30:.1f} GiB free for {what}"
        state = "FAIL" if free < FULL else "note" if free < SCARCE else "ok"
        rows.append(Row(state, "disk", text if state == "ok" else f"{text}: make room"))
    if all(row.state == "ok" for row in rows):
        rows = [Row("ok", "disk", ", ".join(row.text for row in rows))]
    yield from rows


def standing(place: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    return next(one for one in (place, *place.absolute().parents) if one.exists())


def cache() -> Iterator[Row]:
    """Whether downloads and features can go there, and whether locks work and are free."""
    root = cache_dir()
    there = standing(root)
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "cannot be written to" if there.is_dir() else "lies below a file"
        yield Row("note", "cache", f"{root} {what}: name another one by ERK_CACHE")
        return
    if there != root:
        yield Row("ok", "cache", f"{root}, not there yet")
        return
    from filelock import FileLock, Timeout

    probe, held = root / f".doctor-{os.getpid()}.lock", []
    try:
        with FileLock(probe, timeout=1):
            pass
    except (OSError, NotImplementedError) as error:
        yield Row("note", "cache", f"{root} has no locks ({told(error)}): let one process download")
        return
    finally:
        probe.unlink(missing_ok=True)
    for path in files(root, "*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            held.append(path.name.removesuffix(".lock"))
    if held:
        yield Row("note", "cache", f"{root}: another process is downloading {few(held)}")
    else:
        yield Row("ok", "cache", f"{root}, writable, locks work")


def downloads() -> Iterator[Row]:
    """Every file of the cache against the hash that is recorded of it, or against its own sums."""
    good, unknown, parts = 0, [], []
    for path in files(cache_dir(), "*"):
        if is_ours(path):
            if path.suffix == ".part":
                parts.append(path.name)
            continue
        try:
            fault = damage(path)
        except OSError as error:
            fault = f"cannot be read ({told(error)})"
        if fault is None:
            unknown.append(path.name)
        elif fault:
            yield Row("FAIL", "cache", f"{path} {fault}: delete it, it will come anew")
        else:
            good += 1
    if parts:
        yield Row("note", "cache", f"unfinished, the next run goes on with it: {few(parts)}")
    if unknown:
        yield Row("note", "cache", f"nothing is recorded to check these by: {few(unknown)}")
    yield Row("ok", "cache", f"{good} files as recorded")


def files(root: Path, pattern: str) -> list[Path]:
    """The files in a folder and below; of links only the file that they lead to."""
    return sorted(p for p in root.rglob(pattern) if p.is_file() and not p.is_symlink())


def is_ours(path: Path) -> bool:
    """Whether a file only tells of others: locks, records, drafts, the hub's notes."""
    known = (".lock", ".sha256", ".part", ".tag", ".tmp", ".incomplete")
    notes = path.parent.name == "refs" or path.name == "CACHEDIR.TAG" or ".no_exist" in path.parts
    return path.suffix in known or notes


def damage(path: Path) -> str | None:
    """What is wrong with a file, "" if nothing; None: nothing says what it should be."""
    record = hash_record(path)
    named = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    if path.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", path.name):
        return "" if hub_name(path) == path.name else "is not what its name says (hash)"
    if record.is_file():
        expected = record.read_text("utf-8", errors="replace").strip()
        return "" if sha256_of(path) == expected else f"is not as recorded in {record.name}"
    if named:
        return "" if sha256_of(path).startswith(named[1]) else "is not what its name says (hash)"
    if path.suffix == ".safetensors":
        return readable(path)
    if zipfile.is_zipfile(path):  # .pth, .npz: each member has its checksum
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return "" if bad is None else f"is damaged ({bad})"
    return None


def hub_name(path: Path) -> str:
    """What the hub's cache calls the bytes of a file: their SHA-256, or git's hash if small."""
    if len(path.name) == 64:
        return sha256_of(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def readable(path: Path) -> str:
    """What is wrong with the form of a .safetensors file; of features nothing else is recorded."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except Exception as error:  # a class of its own for each fault
        return f"cannot be read ({told(error)})"
    return ""


def checkpoints() -> Iterator[Row]:
    """The weights of the repository against the cards beside them."""
    weights = sorted(CHECKPOINTS.glob("*.safetensors"))
    cards = {p.with_suffix(".safetensors") for p in CHECKPOINTS.glob("*.json")}
    bad = [path for path in {*weights, *cards} if not as_its_card(path)]
    for path in sorted(bad):
        yield Row("FAIL", "checkpoints", f"{path.name} is not what its card says: {RESTORE}")
    if not weights:
        yield Row("FAIL", "checkpoints", f"there are none in {CHECKPOINTS}: {RESTORE}")
    elif not bad:
        yield Row("ok", "checkpoints", f"{len(weights)} networks as their cards say")


def as_its_card(path: Path) -> bool:
    """Whether a file of weights has the sha256 that its card tells."""
    try:
        card = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return sha256_of(path) == card["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return False

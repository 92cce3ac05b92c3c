"""Check stored files: free space, the cache, the checkpoints that come with the code."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from erk.commands.checks.row import Row, describe, few
from erk.io.download import cache_dir, hash_record
from erk.io.files import sha256_of
from erk.io.resources import data

CHECKPOINTS = data("checkpoints")
RESTORE = "git restore checkpoints, or install erk-guid again"
FULL, SCARCE = 2**30, 10 * 2**30  # bytes free: too few to work; few for images or large networks


def space() -> Iterator[Row]:
    """Check the free space for downloads and images."""
    rows = []
    for name, folder in (("the cache", cache_dir()), ("this folder", Path.cwd())):
        free = shutil.disk_usage(existing(folder)).free
        text = f"{free / 2**30:.1f} GiB free for {name}"
        state = "FAIL" if free < FULL else "note" if free < SCARCE else "ok"
        rows.append(Row(state, "disk", text if state == "ok" else f"{text}: free some space"))
    if all(row.state == "ok" for row in rows):
        rows = [Row("ok", "disk", ", ".join(row.text for row in rows))]
    yield from rows


def existing(folder: Path) -> Path:
    """Return a folder, or its nearest parent that exists."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


def cache() -> Iterator[Row]:
    """Check that the cache can be written and that its locks work and are free."""
    root = cache_dir()
    folder = existing(root)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "cannot be written to" if folder.is_dir() else "is below a file"
        yield Row("note", "cache", f"{root} {reason}: set ERK_CACHE to another folder")
        return
    if folder != root:
        yield Row("ok", "cache", f"{root}, does not exist yet")
        return
    from filelock import FileLock, Timeout

    probe, held = root / f".doctor-{os.getpid()}.lock", []
    try:
        with FileLock(probe, timeout=1):
            pass
    except (OSError, NotImplementedError) as error:
        yield Row(
            "note", "cache", f"{root} has no locks ({describe(error)}): let one process download"
        )
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
    """Check every file of the cache against its recorded hash or its checksums."""
    good, unknown, parts = 0, [], []
    for path in files(cache_dir(), "*"):
        if is_auxiliary(path):
            if path.suffix == ".part":
                parts.append(path.name)
            continue
        try:
            fault = damage(path)
        except OSError as error:
            fault = f"cannot be read ({describe(error)})"
        if fault is None:
            unknown.append(path.name)
        elif fault:
            yield Row(
                "FAIL", "cache", f"{path} {fault}: delete it, the next run downloads it again"
            )
        else:
            good += 1
    if parts:
        yield Row("note", "cache", f"unfinished, the next run resumes it: {few(parts)}")
    if unknown:
        yield Row("note", "cache", f"without a recorded hash, not checked: {few(unknown)}")
    yield Row("ok", "cache", f"{good} files as recorded")


def files(root: Path, pattern: str) -> list[Path]:
    """Return the files in a folder and below, without links."""
    return sorted(p for p in root.rglob(pattern) if p.is_file() and not p.is_symlink())


def is_auxiliary(path: Path) -> bool:
    """Return whether a file is a lock, a record, a draft or one of the hub's notes."""
    known = (".lock", ".sha256", ".part", ".tag", ".tmp", ".incomplete")
    notes = path.parent.name == "refs" or path.name == "CACHEDIR.TAG" or ".no_exist" in path.parts
    return path.suffix in known or notes


def damage(path: Path) -> str | None:
    """Return what is wrong with a file, "" if nothing; None without a hash or checksum."""
    record = hash_record(path)
    named = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    if path.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", path.name):
        return "" if hub_name(path) == path.name else "does not have the hash in its name"
    if record.is_file():
        expected = record.read_text("utf-8", errors="replace").strip()
        return "" if sha256_of(path) == expected else f"is not as recorded in {record.name}"
    if named:
        return "" if sha256_of(path).startswith(named[1]) else "does not have the hash in its name"
    if path.suffix == ".safetensors":
        return readable(path)
    if zipfile.is_zipfile(path):  # .pth, .npz: each member has its checksum
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return "" if bad is None else f"is damaged ({bad})"
    return None


def hub_name(path: Path) -> str:
    """Return the hub's name for a file's bytes: their SHA-256, or git's hash if small."""
    if len(path.name) == 64:
        return sha256_of(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def readable(path: Path) -> str:
    """Return what is wrong with the form of a .safetensors file, "" if nothing."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except Exception as error:  # safetensors has one class per fault
        return f"cannot be read ({describe(error)})"
    return ""


def checkpoints() -> Iterator[Row]:
    """Check the checkpoints that come with the code against their metadata."""
    weights = sorted(CHECKPOINTS.glob("*.safetensors"))
    named = {p.with_suffix(".safetensors") for p in CHECKPOINTS.glob("*.json")}
    bad = [path for path in {*weights, *named} if not matches_metadata(path)]
    for path in sorted(bad):
        yield Row("FAIL", "checkpoints", f"{path.name} does not match its metadata: {RESTORE}")
    if not weights:
        yield Row("FAIL", "checkpoints", f"{CHECKPOINTS} has none: {RESTORE}")
    elif not bad:
        yield Row("ok", "checkpoints", f"{len(weights)} networks match their metadata")


def matches_metadata(path: Path) -> bool:
    """Return whether a checkpoint has the sha256 of its metadata."""
    try:
        metadata = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return sha256_of(path) == metadata["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return False

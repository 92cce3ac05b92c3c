"""Code from outside this tree: a checkout of NVlabs/edm2, and earlier commits of this package."""

import functools
import importlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from scripts.bench.paired import ROOT

NOT_RUN = "peer not run"
PEER = click.option("--peer", type=click.Path(exists=True, file_okay=False, path_type=Path),
                    help="A checkout of NVlabs/edm2, which is then timed as well.")  # fmt: skip


class FolderFinder:
    """An import finder for the top-level modules of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self.folder] if path is None else path)


def peer_module(peer: Path, name: str) -> Any:
    """Import a module of the peer's checkout; raise ValueError if it is not a checkout of edm2."""
    if not any(isinstance(f, FolderFinder) and f.folder == str(peer) for f in sys.meta_path):
        sys.meta_path.append(FolderFinder(peer))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--peer {peer} is not a checkout of NVlabs/edm2: {error}.") from error


@functools.cache
def earlier_class(commit: str, module: str, name: str) -> Any:
    """Return a class of the package erk as a commit of this repository defines it."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit, "erk"], capture_output=True)
    if archive.returncode:
        raise ValueError(f"--against {commit}: {archive.stderr.decode().strip()}.")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        with _package_from("erk", Path(folder)):
            return getattr(importlib.import_module(module), name)


@contextmanager
def _package_from(package: str, folder: Path) -> Iterator[None]:
    """Import the package from the folder inside the block; restore the current one afterwards."""
    current = _remove(package)
    finder = FolderFinder(folder)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _remove(package)
        sys.modules.update(current)


def _remove(package: str) -> dict[str, ModuleType]:
    """Remove a package and its modules from sys.modules, and return them."""
    names = [name for name in sys.modules if name.partition(".")[0] == package]
    return {name: sys.modules.pop(name) for name in names}

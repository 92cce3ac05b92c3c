"""Provenance of a result: command, commit, device and versions that reproduce it."""

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erk.io.addresses import shown

CODE = ("*.py", "*.yaml", "*.safetensors")  # files that results depend on


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the command, commit (None if unknown), device and versions of this process.

    A commit that ends in "-dirty" ran with uncommitted changes. The command shows addresses without
    what may be secrets.
    """
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = None
    if (root / ".git").exists():  # else git would report an enclosing repository
        with suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
            changed = ["git", "-C", str(root), "status", "--porcelain", "--", *CODE]
            status = subprocess.run(changed, capture_output=True, text=True, check=True).stdout
            commit += "-dirty" if status.strip() else ""
    is_cuda = torch.device(device).type == "cuda"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if commit is None:
        with suppress(PackageNotFoundError):
            versions["erk-guid"] = version("erk-guid")
    return {
        "command": " ".join([_script(root), *map(shown, sys.argv[1:])]),
        "commit": commit,
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "versions": versions,
    }


def _script(root: Path) -> str:
    """Return what runs: ``-m MODULE``, or the script, relative to the repository if inside it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m; None for scripts
    if spec is not None and spec.name.startswith("scripts."):
        return f"-m {spec.name.removesuffix('.__main__')}"
    path = Path(sys.argv[0]).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

"""What it takes to remake a number: command, commit, device, versions."""

import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erk import __version__

CODE = ("*.py", "*.yaml", "*.safetensors")  # what numbers come from


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What it takes to remake a number: command, commit (None if unknown), device, versions.

    A commit that ends in "-dirty" ran with changes of the code that no commit holds.
    """
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = None
    if (root / ".git").exists():  # else git would take the commit of a repository around us
        with suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
            changed = ["git", "-C", str(root), "status", "--porcelain", "--", *CODE]
            found = subprocess.run(changed, capture_output=True, text=True, check=True).stdout
            commit += "-dirty" if found.strip() else ""
    is_cuda = torch.device(device).type == "cuda"
    return {
        "command": " ".join([_script(root), *sys.argv[1:]]),
        "commit": commit,
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        | ({"erk-guid": __version__} if commit is None else {}),
    }


def _script(root: Path) -> str:
    """The running script as a path within the repository, where it is one of its."""
    path = Path(sys.argv[0]).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

"""What several processes of one machine have to say, printed once.

torchrun gives its processes a folder in common, where each leaves a mark for what it printed.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

MARK = "reported-"


def is_first(message: str) -> bool:
    """Return whether no other process has printed the message, and leave the mark that says so.

    True without torchrun, or if the mark cannot be written: a message is never lost.
    """
    folder = _common_folder()
    if folder is None:
        return True
    name = MARK + hashlib.sha256(message.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    try:
        (folder / name).open("x").close()
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def is_reported() -> bool:
    """Return whether a process has printed an error: torchrun then ends the others by a signal."""
    folder = _common_folder()
    if folder is None:
        return False
    with suppress(OSError):
        return next(folder.glob(f"{MARK}*"), None) is not None
    return False


def _common_folder() -> Path | None:
    """Return the parent of the folders that torchrun has created for each process, if any."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # .../attempt_0/RANK/error.json
    folder = Path(file).parents[1] if file and len(Path(file).parents) > 1 else None
    return folder if folder is not None and folder.is_dir() else None

"""Paths of the data files that are shipped with the code: configs/ and checkpoints/."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # erk/


def data(folder: str) -> Path:
    """Return the folder "configs" or "checkpoints".

    It is inside the package if installed from a wheel, else in the root of the repository.
    """
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder

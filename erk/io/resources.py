"""Where the files lie that come with the code: configs/ and checkpoints/."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # erk/


def data(folder: str) -> Path:
    """The folder "configs" or "checkpoints": within the package if that is installed from a wheel
    (pyproject.toml puts it there), else in the root of the repository."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder

"""Tables of rows in YAML, checked by pydantic: an error names the file, the row and the key."""

from pathlib import Path
from typing import Any, TypeVar

import yaml

Row = TypeVar("Row")


def read_rows(path: Path, kind: type[Row]) -> dict[str, Row]:
    """Read a YAML mapping of row name -> row, each validated as the dataclass ``kind``.

    Raises ValueError, naming the file, the row and the key, for what does not fit.
    """
    try:
        rows = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rows, dict):
        raise ValueError(f"{path} must hold one row per name")
    return {str(name): checked(row, kind, f"{path}: {name}") for name, row in rows.items()}


def checked(row: Any, kind: type[Row], where: str) -> Row:
    """Validate one row as the dataclass ``kind``; ``where`` begins the message of a ValueError."""
    from pydantic import TypeAdapter, ValidationError  # late: a tenth of a second

    keys = ", ".join(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a row of {keys}")
    try:
        return TypeAdapter(kind).validate_python(row)
    except ValidationError as error:
        raise ValueError(f"{where} {_described(error.errors()[0], keys)}") from None


def _described(error: Any, keys: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("missing", "missing_argument"):
        return f"has no {key}: add it"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"has the unknown key {key!r}: use {keys}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"has the {key} {error['input']!r}: {error['msg'][0].lower() + error['msg'][1:]}"

"""Rows of results as an aligned screen table, markdown, csv or json; files appear whole."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erk.io.atomic import uninterrupted, write_file

Row = Mapping[str, Any]  # column -> str, number, None, or (value, error or None)


def to_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """An aligned table for the screen; numbers stand to the right."""
    head, *body = _cells(rows, columns)
    numeric = [_numeric(rows, column) for column in head]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = [_aligned(line, widths, numeric) for line in (head, rule, *body)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def to_markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """A markdown table."""
    head, *body = _cells(rows, columns)
    rule = ["---:" if _numeric(rows, column) else "---" for column in head]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (head, rule, *body)]
    return "".join("| " + " | ".join(line) + " |\n" for line in escaped)


def to_csv(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Comma-separated values in full precision; (value, error) becomes ``x`` and ``x_se``."""
    flat = [flatten(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if columns is not None:
        names = [name for name in names if name.removesuffix("_se") in columns or name in columns]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def to_json(rows: Sequence[Row] | Row) -> str:
    """JSON of one row or of several; (value, error) becomes ``x`` and ``x_se``."""
    data = flatten(rows) if isinstance(rows, Mapping) else [flatten(row) for row in rows]
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all, with its folders, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with uninterrupted():
        write_file(path, content.encode() if isinstance(content, str) else content)
    return path


def flatten(row: Row) -> dict[str, Any]:
    """The row with each (value, error) split into ``x`` and ``x_se``."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= dict(zip((name, f"{name}_se"), _pair(value) or (value,), strict=False))
    return flat


def cell(value: Any) -> str:
    """A value as people read it: 4 significant digits, – for None; with its error, to two digits
    of that: ``1.23 ± 0.10``."""
    pair = _pair(value)
    if pair is not None and pair[0] is not None and pair[1]:
        error = float(f"{pair[1]:.1e}")  # two digits, so that 0.0996 has as many decimals as 0.10
        decimals = max(0, 1 - math.floor(math.log10(error)))
        return f"{pair[0]:.{decimals}f} ± {error:.{decimals}f}"
    if pair is not None:
        return cell(pair[0])
    if value is None:
        return "–"
    return _short(value, 4) if isinstance(value, float) else str(value)


def _short(number: float, digits: int) -> str:
    whole = 10 ** (digits - 1) <= abs(number) < 1e9  # never 1.2e+04 for 12346
    return f"{number:.0f}" if whole else f"{number:.{digits}g}"


def _pair(value: Any) -> tuple[Any, Any] | None:
    return (value[0], value[1]) if isinstance(value, tuple) and len(value) == 2 else None


def _cells(rows: Sequence[Row], columns: Sequence[str] | None) -> list[list[str]]:
    """The head and one line of cells per row."""
    head = list(columns) if columns else list(dict.fromkeys(name for row in rows for name in row))
    return [head, *([cell(row.get(name)) for name in head] for row in rows)]


def _numeric(rows: Sequence[Row], column: str) -> bool:
    values = [row.get(column) for row in rows]
    return all(value is None or isinstance(value, int | float | tuple) for value in values)


def _aligned(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = zip(line, widths, numeric, strict=True)
    return "  ".join(text.rjust(w) if right else text.ljust(w) for text, w, right in cells)

"""Evaluations as text for people, and rows as text, Markdown, JSON and CSV."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from erk.io.text import plain_cell, printable
from metrics.evaluation import Evaluation
from metrics.jackknife import Difference
from metrics.protocols import known_protocols

Row = Mapping[str, Any]  # column -> str, number, None, or (value, error or None)


def text(name: str, evaluation: Evaluation, notes: Sequence[str] = ()) -> str:
    """Format a table of the values of one set of images, then the notes."""
    lines = [
        {"metric": metric, "value": value, "standard error": evaluation.errors[metric]}
        for metric, value in evaluation.values.items()
        if value is not None
    ]
    return f"{heading(name, evaluation)}\n\n{to_text(lines)}{notes_text(evaluation, notes)}"


def heading(name: str, evaluation: Evaluation) -> str:
    """Format what was compared with what, by which protocol."""
    details = evaluation.details
    against = details.get("reference") or details.get("real") or "real images"
    known = known_protocols().get(evaluation.protocol)
    first = f"{name}: {evaluation.n} images against {against}"
    protocol = f"protocol {evaluation.protocol}" + (f": {known.source}" if known else "")
    return "\n".join(map(printable, [first, protocol]))


def notes_text(evaluation: Evaluation, notes: Sequence[str] = ()) -> str:
    """Format how far the values may be trusted; nothing without notes."""
    lines = [f"- {printable(note)}" for note in (*notes, *evaluation.notes)]
    return "".join(f"{line}\n" for line in ["", "Notes", *lines]) if lines else ""


def paired_text(
    names: Sequence[str], pair: Sequence[Evaluation], differences: Mapping[str, Difference]
) -> str:
    """Format two runs side by side, their differences, and which of these exceed noise."""
    lines: list[dict[str, Any]] = []
    for metric, one in differences.items():
        line: dict[str, Any] = {"metric": metric}
        for name, evaluation in zip(names, pair, strict=True):
            line[name] = evaluation.values[metric], evaluation.errors[metric]
        line |= {"difference": (one.value, one.error)}
        lines.append(line | {"beyond noise": "yes" if one.exceeds else "no"})
    if not lines:
        return "no difference can be given: error bars need two groups or more\n"
    names = [printable(name) for name in names]
    first = (
        f"{names[0]} minus {names[1]}, the same seeds in pairs; ± standard error; beyond noise: "
        "the 95 % interval of the difference excludes 0"
    )
    return f"{first}\n\n{to_text(lines)}"


def to_text(rows: Sequence[Row]) -> str:
    """Format rows as an aligned table for the screen; numbers are right-aligned."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([number(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    lines.insert(1, ["-" * width for width in widths])
    right = [is_numeric(rows, name) for name in names]
    return "".join(_aligned(line, widths, right) for line in lines)


def to_markdown(
    rows: Sequence[Row], columns: Sequence[str] = (), bold: Collection[tuple[int, str]] = ()
) -> str:
    """Format rows as a Markdown table.

    Parameters
    ----------
    rows
        A missing column is an empty cell.
    columns
        Columns in this order; by default all, in the order of their appearance.
    bold
        Cells in bold face, as (index of the row, column).
    """
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---:" if is_numeric(rows, name) else "---" for name in names]]
    for index, row in enumerate(rows):
        cells = {name: _markdown(number(row.get(name))) for name in names}
        lines.append([f"**{cell}**" if (index, name) in bold else cell
                      for name, cell in cells.items()])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown(cell: str) -> str:
    """Escape what Markdown takes for a column or for HTML."""
    return cell.replace("|", "\\|").replace("<", "&lt;")


def to_json(value: Any) -> str:
    """Encode a row, or several, as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return re.sub("[\ud800-\udfff]", lambda half: json.dumps(printable(half[0]))[1:-1], text)


def to_csv(rows: Sequence[Row]) -> str:
    """Encode rows as CSV in full precision; dictionaries become JSON."""
    import pandas  # late: half a second

    def plain(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict | list) else plain_cell(value)

    flat = [{name: plain(value) for name, value in row.items()} for row in rows]
    return str(pandas.DataFrame(flat, dtype=object).to_csv(index=False, lineterminator="\n"))


def number(value: Any) -> str:
    """Format a value for people: 4 significant digits, – for None.

    (value, error) becomes ``1.23 ± 0.10``, to two digits of the error.
    """
    if isinstance(value, tuple):
        value, error = value
        if value is None or not error:
            return number(value)
        rounded = float(f"{error:.1e}")  # so that 0.0996 has as many decimals as 0.10
        decimals = max(0, 1 - math.floor(math.log10(rounded)))
        return f"{value:.{decimals}f} ± {rounded:.{decimals}f}"
    if value is None:
        return "–"
    if not isinstance(value, float):
        return printable(str(value))
    is_whole = 1000 <= abs(value) < 1e9  # never 1.2e+04 for 12346
    return f"{value:.0f}" if is_whole else f"{value:.4g}"


def is_numeric(rows: Sequence[Row], name: str) -> bool:
    """Return whether a column holds only numbers, decimal texts and empty cells."""
    texts = [value for row in rows if isinstance(value := row.get(name), str)]
    return all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in texts)


def _aligned(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(line, widths, right, strict=True)
    ]
    return "  ".join(cells).rstrip() + "\n"

"""The HTML of a page: a sentence, its figures, ours beside the published values, the rest folded.

All is rendered from a page's rows, so pages of earlier versions get the same look.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from metrics.report import number
from scripts.paper.config import (
    PAPER,
    AnyConfig,
    Measured,
    Request,
    config_names,
    images_of,
    load_config,
)
from scripts.paper.scales import at_scale
from scripts.typeset import typeset

if TYPE_CHECKING:
    from scripts.paper.page import Page, Table

LOW = ("fd", "fd_dinov2", "fid", "distance")  # columns where less is better
LABELS = {"fd": "FD", "fid": "FID", "fd_dinov2": "FD-DINOv2", "is": "IS", "nfe": "NFE"}
MARKS = {"better": "▲", "worse": "▼", "neither": "·"}
MOST_ROWS = 20  # of a table that is not folded
FEW_ROWS = 10  # of all tables of a measurement that are not
INDEX = re.compile(r"(?<![\w.])([xσ])_(?:\{([^{}]*)\}|([^\W_])(?!\w))")  # x_i, not x_hat, np.x_y

Row = Mapping[str, Any]


class HtmlCell(NamedTuple):
    """One cell of the table of ours and the published values."""

    text: str
    error: str = ""
    is_best: bool = False
    verdict: str = ""  # better, worse or neither, beside the row of the same seeds
    hint: str = ""  # the difference to that row


class HtmlTable(NamedTuple):
    """Ours and the published values side by side."""

    groups: list[tuple[str, int]]  # a heading over so many columns
    columns: list[str]
    rows: list[list[HtmlCell]]


def to_html(page: "Page") -> str:
    """Return the page as a document in ASCII that is read alone."""
    return to_ascii(environment().get_template("page.html.j2").render(page=page))


def environment() -> Environment:
    """Return the templates beside this file; values are escaped."""
    known = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions = (main_table, open_tables, details_of, sentence, paper_line)
    known.globals |= {one.__name__: one for one in functions}
    known.globals |= {"marks": MARKS, "most_rows": MOST_ROWS}
    known.filters["unbroken"] = unbroken
    return known


def unbroken(text: str) -> Markup:
    """Return text whose names are not divided, with powers; x_i and σ_{i+1} have their indices."""
    text = INDEX.sub(r"\1<sub>\2\3</sub>", typeset(str(escape(text))))
    return Markup(re.sub(r"(?<=</sub>)\^(\w+)", r"<sup>\1</sup>", text))


def to_ascii(text: str) -> str:
    """Write every character beyond ASCII as a reference, so that no encoding can garble it."""
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def verdict_of(column: str, change: Row) -> str:
    """Return whether a paired difference is better, worse or neither beyond noise."""
    if not change["exceeds"]:
        return "neither"
    return "better" if (change["value"] < 0) == (column in LOW) else "worse"


def main_table(page: "Page") -> HtmlTable | None:
    """Return ours and the published values side by side; None for pages without measured rows."""
    rows = page.rows
    if page.kind not in ("sampled", "sweep") or not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row.get("ours", {})))
    printed = {name: _printed(rows, name) for row in rows for name in row["published"]}
    groups = [("", 2), ("measured here", len(names)), ("published", len(printed))]
    columns = ["row", "NFE", *(LABELS.get(name, name) for name in [*names, *printed])]
    best = {*page.tables[0].bold} if page.tables else set()
    cells = [
        [HtmlCell(row["name"]), HtmlCell(_nfe(row)),
         *(_ours(row, name, (index, name) in best) for name in names),
         *(HtmlCell(printed[name].get(row["name"], "–")) for name in printed)]
        for index, row in enumerate(rows)
    ]  # fmt: skip
    return HtmlTable([one for one in groups if one[1]], columns, cells)


def _nfe(row: Row) -> str:
    if "nfe" not in row:
        return "–"
    guide = row["guide_nfe"]
    return f"{row['nfe']:.4g}" + (f" + {guide:.4g}" if guide else "")


def _printed(rows: Sequence[Row], name: str) -> dict[str, str]:
    """Return the published values of a column by row, with as many decimals as one of them has."""
    values = {row["name"]: row["published"][name] for row in rows if name in row["published"]}
    decimals = max(len(repr(value).partition(".")[2]) for value in values.values())
    return {row: f"{value:.{decimals}f}" for row, value in values.items()}


def _ours(row: Row, name: str, is_best: bool) -> HtmlCell:
    if not row["measured"]:
        return HtmlCell("–")
    text, error = rounded(row["ours"].get(name), row["se"].get(name))
    change = row["paired"].get(name)
    if change is None:
        return HtmlCell(text, error, is_best)
    difference = number((change["value"], change["error"]))
    hint = f"{difference} against {row['against']}"
    return HtmlCell(text, error, is_best, verdict_of(name, change), hint)


def rounded(value: float | None, error: float | None) -> tuple[str, str]:
    """Return a value and its standard error to one digit of the error, two below 2."""
    if value is None or not error:
        return number(value), ""
    lead = math.floor(math.log10(float(f"{error:.1e}")))
    decimals = max(0, -lead + (error < 2 * 10.0**lead))
    return f"{value:.{decimals}f}", f"{error:.{decimals}f}"


def details_of(page: "Page") -> list["Table"]:
    """Return the tables that are folded."""
    if main_table(page) is None:
        return page.tables[len(open_tables(page)) :]
    shown = ("Measured here",) if page.scale == PAPER else ("Measured here", "Published")
    return [table for table in page.tables if not table.caption.startswith(shown)]


def open_tables(page: "Page") -> list["Table"]:
    """Return the tables of a measurement without a main table, up to FEW_ROWS.

    A figure of the paper shows its numbers, so that its tables are folded.
    """
    is_figure = bool(page.files) and config_of(page) is not None
    if is_figure or page.kind in ("grid", "settings") or main_table(page) is not None:
        return []
    sizes = accumulate(len(table.rows) for table in page.tables)
    return [table for table, size in zip(page.tables, sizes, strict=True) if size <= FEW_ROWS]


def config_of(page: "Page") -> AnyConfig | None:
    """Return the experiment of a page; None for pages of other measurements."""
    match = re.match(r"(?:table|figure)\d+", page.name)
    return load_config(match[0]) if match and match[0] in config_names() else None


def sentence(page: "Page") -> str:
    """Return what the page shows, as its config says it; "" without, and for a trial.

    The sentence is about all rows with all images: few of either may show something else.
    """
    config = config_of(page)
    said = None if config is None else config.says.get(page.scale or "any")
    if config is None or said is None or is_trial(page, config) or holds(said, page.rows):
        return ""
    return said.text


def is_trial(page: "Page", config: AnyConfig) -> bool:
    """Return whether rows of a page are missing, or have other images than the config asks for."""
    if not all(row.get("measured", True) for row in page.rows):
        return True
    if not isinstance(config, Measured) or page.scale is None:
        return any("--num" in one["command"] for one in page.made_by)
    request = Request(scale=page.scale)
    config = at_scale(config, request)
    images = {row.name: images_of(config, row, request) for row in config.rows}
    return any(row["images"] != images.get(row["name"], row["images"]) for row in page.rows)


def paper_line(page: "Page") -> str:
    """Return what the paper shows; "" where a note of the page says it."""
    config = config_of(page)
    if config is None or any(config.paper in note for note in page.notes):
        return ""
    return f"The paper: {config.paper}"


def holds(said: Any, rows: Sequence[Row]) -> list[str]:
    """Return the directions that a sentence states and the measured rows do not show."""
    changes = {row["name"]: row["paired"] for row in rows if row.get("paired")}
    wrong = []
    for name, stated in said.holds.items():
        for column, direction in stated.items():
            change = changes.get(name, {}).get(column)
            seen = "not measured" if change is None else verdict_of(column, change)
            if seen != direction:
                wrong.append(f"{name}: {column} is {seen}, not {direction}")
    return wrong

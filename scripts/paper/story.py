"""The beginning of results/index.html: what was measured, and error and FD over evaluations.

configs/story.yaml has the words; every number is read from the .json files of results.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment

from erk.io.config import read_config
from scripts.paper.config import FOLDER, Strict

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 26, 42  # margins around the curves


class Value(Strict):
    """Where a number is: a page, the row with these values, and the key of the number."""

    page: str  # NAME of NAME.json
    row: dict[str, str | int | float]
    key: str  # such as ours.fd, or ratio.0 for the first of a list


class Finding(Strict):
    """One finding: a title, a sentence with numbers, and what must be true of them."""

    title: str
    text: str  # a template of jinja2 with the values
    values: dict[str, Value]
    holds: list[str] = []  # such as "auto < plain"


class Plot(Strict):
    """Curves over the number of evaluations, one panel per key."""

    page: str
    row: dict[str, str | int | float]  # of all curves
    by: str  # the key that names the curve
    curves: dict[str, str]  # its value -> label
    panels: dict[str, str]  # key -> title
    caption: str


class Story(Strict):
    """configs/story.yaml."""

    findings: list[Finding]
    plot: Plot


class Filled(NamedTuple):
    """A finding with its numbers."""

    title: str
    text: str


class Axis(NamedTuple):
    """Map [first, last], logarithmic, to [start, end]."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        a, b = math.log(self.first), math.log(self.last)
        scale = (self.end - self.start) / (b - a) if a != b else 0.0
        return self.start + (math.log(value) - a) * scale


def read_story() -> Story:
    """Read configs/story.yaml. Raises ValueError or OSError for a wrong file."""
    return read_config(FOLDER / "story.yaml", Story)


def findings_of(folder: Path) -> list[Filled]:
    """Return the findings whose pages are in a folder."""
    return [
        Filled(one.title, _filled(one.text, values_of(one, folder)))
        for one in read_story().findings
        if all((folder / f"{value.page}.json").is_file() for value in one.values.values())
    ]


def values_of(finding: Finding, folder: Path) -> dict[str, Any]:
    """Return the numbers of a finding, [value, standard error] for some.

    Raises LookupError where a page has no such row.
    """
    return {name: _value(value, folder) for name, value in finding.values.items()}


def wrong(finding: Finding, folder: Path) -> list[str]:
    """Return the comparisons ("auto < plain") that the numbers do not meet."""
    values = {name: _plain(value) for name, value in values_of(finding, folder).items()}
    known = Environment()
    return [one for one in finding.holds if not known.compile_expression(one)(**values)]


def plot_of(folder: Path) -> dict[str, Any] | None:
    """Return the coordinates of the curves; None where their page is not in the folder."""
    plot = read_story().plot
    if not (folder / f"{plot.page}.json").is_file():
        return None
    groups = curves_of(plot, folder)
    panels = [_panel(groups, key, title) for key, title in plot.panels.items()]
    return {"panels": panels, "names": list(groups), "caption": plot.caption}


def curves_of(plot: Plot, folder: Path) -> dict[str, list[Mapping[str, Any]]]:
    """Return label -> rows of each curve, in the order of their numbers of evaluations."""
    rows = [row for row in _rows(folder / f"{plot.page}.json") if _fits(row, plot.row)]
    return {label: _once(row for row in rows if row[plot.by] == value)
            for value, label in plot.curves.items()}  # fmt: skip


def decades(values: Sequence[float]) -> list[float]:
    """Return the powers of ten within the values; their ends where there are none."""
    low, high = min(values), max(values)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [10.0**k for k in powers] or [low, high]


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """Return a line through points as the path of an SVG."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _panel(groups: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str) -> Any:
    rows = [row for group in groups.values() for row in group]
    nfes = sorted({row["nfe"] for row in rows})
    values = [row[key] for row in rows]
    x = Axis(nfes[0], nfes[-1], LEFT, WIDTH - RIGHT)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP)
    curves = []
    for name, group in groups.items():
        points = [(x(row["nfe"]), y(row[key])) for row in group]
        curves.append({"name": name, "path": path_of(points), "points": points})
    return {
        "title": title, "width": WIDTH, "height": HEIGHT, "left": LEFT, "top": TOP,
        "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM,
        "x_ticks": [(x(value), value) for value in nfes],
        "y_ticks": [(y(value), value) for value in decades(values)],
        "curves": curves,
    }  # fmt: skip


def _once(rows: Any) -> list[Mapping[str, Any]]:
    """Return one row per number of evaluations, in order: two budgets may have the same."""
    by_nfe = {row["nfe"]: row for row in rows}
    return [by_nfe[nfe] for nfe in sorted(by_nfe)]


def _rows(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = json.loads(path.read_bytes())["rows"]
    return rows


def _fits(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in wanted.items())


def _value(value: Value, folder: Path) -> Any:
    path = folder / f"{value.page}.json"
    found = next((row for row in _rows(path) if _fits(row, value.row)), None)
    if found is None:
        raise LookupError(f"configs/story.yaml: {path.name} has no row {value.row}")
    result: Any = found
    for part in value.key.split("."):
        result = result[part]
    return result


def _plain(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """Fill in the numbers as configs/story.yaml explains."""

    def percent(value: Any, base: Any) -> str:
        change = f"{100 * (_plain(value) / _plain(base) - 1):+.0f}\N{NO-BREAK SPACE}%"
        return change.replace("-", "\N{MINUS SIGN}")

    def share(value: Any) -> str:
        return f"{100 * _plain(value):.0f}\N{NO-BREAK SPACE}%"

    def times(value: Any, base: Any) -> str:
        return f"{_plain(value) / _plain(base):.1f}"

    def rounded(value: Any) -> str:
        return f"{_plain(value):.3g}"

    functions = {"percent": percent, "share": share, "times": times, "number": rounded}
    return Environment().from_string(text).render(**values, **functions)

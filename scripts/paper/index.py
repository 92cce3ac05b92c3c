"""results/index.html: all tables and figures on one page that asks for nothing from outside.

It is rendered from the .json files of the pages and their images alone, at any time.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from erk.io.atomic import save_file
from metrics.report import number
from scripts.paper.config import (
    PAPER,
    Request,
    config_names,
    has_scales,
    load_config,
    page_name,
)
from scripts.paper.html import environment, to_ascii
from scripts.paper.page import Page, read_page
from scripts.paper.scales import scales
from scripts.paper.story import Axis, decades, findings_of, path_of, plot_of

CARD = ("settings", "seeds", "images", "batch", "nfe", "guide_nfe", "processes", "seconds",
        "command", "commit", "device", "versions")  # fmt: skip
"""What a run card says of a row, in this order."""
FIRST = "digits-early"  # the network that is shown first: its stiffness is that of EDM2-S
WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 26, 42  # margins around the curves

Row = Mapping[str, Any]


class Entry(NamedTuple):
    """One page within the index."""

    page: Page
    label: str  # in the navigation
    cards: list[tuple[str, list[tuple[str, str]]]]  # row -> (name, value) of its run
    viewer: dict[str, Any] | None  # images of the same seeds, with sliders


def write_index(folder: str | Path) -> Path:
    """Write index.html beside the pages in ``folder`` and return its path."""
    return save_file(Path(folder) / "index.html", index_of(Path(folder)))


@cache
def variants() -> dict[str, Request]:
    """Return what may follow the name of an experiment in that of its page; see page_name."""
    requests = [Request(scale=scale, as_printed=printed)
                for scale in (*scales(), PAPER) for printed in (False, True)]  # fmt: skip
    table = next(name for name in config_names() if has_scales(load_config(name), PAPER))
    return {page_name(load_config(table), one).removeprefix(table): one for one in requests}


def index_of(folder: Path) -> str:
    """Return the page of all tables and figures whose files are in ``folder``."""
    entries = [entry for name in config_names() for entry in _entries(folder, name)]
    present = {entry.page.name for entry in entries}
    missing = [name for name in config_names() if not any(name + v in present for v in variants())]
    template = environment().get_template("index.html.j2")
    address = partial(_address, folder)
    labels = {name: one.label for name, one in scales().items()} | {PAPER: "the paper's networks"}
    used = {entry.page.scale or "none" for entry in entries}
    order = [*sorted(labels, key=lambda name: name != FIRST), "none"]
    labels["none"] = "none: toy problem and settings"
    networks = {name: labels[name] for name in order if name in used}
    return to_ascii(
        template.render(entries=entries, missing=missing, address=address, networks=networks,
                        findings=findings_of(folder), plot=plot_of(folder))
    )  # fmt: skip


def _entries(folder: Path, name: str) -> list[Entry]:
    entries = []
    for variant in variants():
        path = folder / f"{name}{variant}.json"
        if path.is_file():
            page = read_page(path)
            viewer = viewer_of(folder, page.rows) if page.kind == "grid" else None
            cards = [(row["name"], _card(row)) for row in page.rows if row.get("measured")]
            entries.append(Entry(page, _label(page, variant), cards, viewer))
    return entries


def _label(page: Page, variant: str) -> str:
    """Return the title without its network, as ``Table 2: ERK-Guid without model guidance``."""
    start, colon, rest = page.title.partition(": ")
    match = re.match(r"\w+ \d+", start)
    start = (match[0] if match else start) + (" as printed" if "as-printed" in variant else "")
    return start + colon + rest


def _card(row: Row) -> list[tuple[str, str]]:
    return [(name, _plain(row[name])) for name in CARD if row.get(name) is not None]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(one)}" for key, one in value.items() if one is not None)
    return number(value)


def _address(folder: Path, name: str) -> str:
    """Return a PNG file as an address that contains it."""
    encoded = base64.b64encode((folder / name).read_bytes()).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def viewer_of(folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the sheets of a grid with the values of its sliders and its curves."""
    cells = [
        {
            "w_stiff": row["w_stiff"],
            "w_con": row["w_con"],
            "image": _address(folder, row["sheet"]),
            "caption": f"{row['row']}: {row['steps']} steps, NFE {row['NFE']:g}"
            + ("" if row["w_con"] is None else f", w_con {row['w_con']:g}"),
        }
        for row in rows
    ]
    thresholds = sorted({one["w_con"] for one in cells if one["w_con"] is not None})
    sliders = {"w_stiff": list(dict.fromkeys(one["w_stiff"] for one in cells))}
    if len(thresholds) > 1:
        sliders["w_con"] = thresholds
    sliders_json = {name: json.dumps(values) for name, values in sliders.items()}
    return {"cells": cells, "sliders": sliders, "json": sliders_json, "curves": curves_of(rows)}


def curves_of(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return coordinates of the stiffness over sigma, both logarithmic, one curve per row.

    ``rows``: each with ``row`` (its name), ``w_con`` and ``traces`` (sigma and the quartiles of
    the stiffness by step). None where no row has a trace.
    """
    sigmas = list(chain.from_iterable(row["traces"]["sigma"] for row in rows))
    values = list(chain.from_iterable(chain(*row["traces"]["stiffness"]) for row in rows))
    values = [value for value in values if value > 0]
    if not sigmas or not values:
        return None
    x = Axis(max(sigmas), min(sigmas), LEFT, WIDTH - RIGHT)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP)
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "top": TOP,
        "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM,
        "x_ticks": [(x(value), value) for value in decades(sigmas)],
        "y_ticks": [(y(value), value) for value in decades(values)],
        "groups": [_curve(row, x, y) for row in rows],
    }  # fmt: skip


def _curve(row: Row, x: Axis, y: Axis) -> dict[str, Any]:
    """Return the paths of one row: the band of the quartiles, the median and the threshold."""
    steps = list(zip(row["traces"]["sigma"], row["traces"]["stiffness"], strict=True))
    low, median, high = (
        [(x(sigma), y(max(rho[quartile], y.first))) for sigma, rho in steps]
        for quartile in range(3)
    )
    threshold = row["w_con"]
    is_shown = threshold is not None and y.first <= threshold <= y.last
    return {
        "name": row["row"],
        "band": path_of(low + high[::-1]) + "Z",
        "median": path_of(median),
        "gate": y(threshold) if is_shown else None,
    }

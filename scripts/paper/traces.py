"""Stiffness along sampling as an SVG that a page holds: a curve per row, sigma falls rightwards.

It names no colours: those, and which curve stands out, are the page's (scripts/tables/index.html).
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 26, 42  # margins around the curves

Place = Callable[[float], float]  # a value -> its coordinate


def trace_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """Median and quartiles of the stiffness over sigma, both logarithmic, for rows of a grid.

    ``rows``: each with ``row`` (its name), ``w_con`` and ``traces`` as scripts/paper/grids.py
    has them. Group i has the class "trace" and data-row="i"; "" where no row has a trace.
    """
    sigmas = list(chain.from_iterable(row["traces"]["sigma"] for row in rows))
    values = list(chain.from_iterable(chain(*row["traces"]["stiffness"]) for row in rows))
    values = [value for value in values if value > 0]
    if not sigmas or not values:
        return ""
    x = _log_place(max(sigmas), min(sigmas), LEFT, WIDTH - RIGHT)
    y = _log_place(min(values), max(values), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="estimated stiffness along sampling">',
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        f'<text x="{LEFT}" y="16">estimated stiffness: median and quartiles over the seeds; '
        "dashed: w_con</text>",
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">noise level sigma, '
        "sampling runs to the right</text>",
    ]
    for value in _decades(sigmas):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
                     f"{value:g}</text>")  # fmt: skip
    for value in _decades(values):
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
                     f"{value:g}</text>")  # fmt: skip
    ends = min(values), max(values)
    parts += [_group(index, row, x, y, ends) for index, row in enumerate(rows)]
    return "\n".join([*parts, "</svg>"])


def _group(index: int, row: Mapping[str, Any], x: Place, y: Place, ends: Sequence[float]) -> str:
    traces = row["traces"]

    def curve(quartile: int) -> list[tuple[float, float]]:
        steps = zip(traces["sigma"], traces["stiffness"], strict=True)
        return [(x(sigma), y(max(rho[quartile], ends[0]))) for sigma, rho in steps]

    band = _path(curve(0) + curve(2)[::-1])
    gate = ""
    if row["w_con"] is not None and ends[0] <= row["w_con"] <= ends[1]:
        gate = f'<path class="gate" d="M{LEFT} {y(row["w_con"]):.1f}H{WIDTH - RIGHT}"/>'
    return (
        f'<g class="trace" data-row="{index}"><title>{html.escape(row["row"])}</title>'
        f'<path class="band" d="{band}Z"/><path d="{_path(curve(1))}"/>{gate}</g>'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _log_place(first: float, last: float, start: float, end: float) -> Place:
    """From [first, last], logarithmic, to [start, end]."""
    a, b = math.log(first), math.log(last)
    scale = (end - start) / (b - a) if a != b else 0.0
    return lambda value: start + (math.log(value) - a) * scale


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten within the values; their ends where there are none."""
    low, high = min(values), max(values)
    found = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return found or [low, high]

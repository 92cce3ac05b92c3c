"""The look of all figures: light, readable at 600 pixels' width and by colour-blind eyes.

The same numbers give the same bytes: no date and no version is written into a picture.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from metrics.table import write
from scripts.paper.config import Config, Request, page_name
from scripts.paper.render import Block, Page, heading, write_page

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

WIDTH, DPI = 7.0, 170  # inches of a figure two panels wide; 1190 pixels, twice what a page shows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008: eight colours that all common kinds of colour-blindness tell apart."""
MARKS = ("o", "s", "^", "D", "v", "P", "X")  # colour is never the only difference
GREY = "#666666"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.facecolor": "white",
}


class Told(NamedTuple):
    """What a figure says: tables, numbers in full, words and the picture."""

    blocks: Sequence[Block]
    data: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    picture: bytes  # a PNG file


def write_figure(
    config: Config, request: Request, of: str, told: Told, made_by: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write the page of a figure with its PNG into ``request.results``; the files written.

    ``of``: what stands for the paper's data at this scale, for the title.
    """
    name = page_name(config, request)
    notes = [*told.notes, f"The paper: {config.paper}", *config.notes]
    page = Page(
        name, heading(config, request.scale, of), config.kind, request.scale, told.blocks,
        told.data, notes, made_by, [f"{name}.png"],
    )  # fmt: skip
    picture = write(request.results / f"{name}.png", told.picture)
    return [*write_page(request.results, page), picture]


@contextmanager
def panels(columns: int, height: float = 3.2, rows: int = 1, **how: Any) -> Iterator[Any]:
    """A figure in the house style: (figure, array of rows x columns axes); closed at the end."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **how
        )
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def look(index: int) -> dict[str, Any]:
    """Colour and mark of the index-th curve of a panel."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKS[index % len(MARKS)]}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    how: dict[str, Any] = {
        "bbox_inches": "tight",
        "pad_inches": 0.06,
        "metadata": {"Software": None},
    }
    figure.savefig(stream, dpi=DPI, format="png", **how)
    return stream.getvalue()

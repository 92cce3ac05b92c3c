"""Figure style: legible at a width of 600 pixels and under colour-vision deficiency.

Equal numbers give equal bytes: no date and no version is written into the PNG file.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 170  # inches of a two-panel figure; 1190 pixels, twice the width on a page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#666666")
"""The palette of Okabe and Ito (2008), distinguishable under colour-vision deficiency."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")  # curves never differ by colour alone
GREY = "#666666"
STYLE = Path(__file__).with_name("erk.mplstyle")
"""The settings of matplotlib that all figures share."""


@contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """Yield an empty figure in the common style, WIDTH x height inches.

    Neither pyplot nor its backend are touched: they are the user's. Nor do the user's settings of
    matplotlib change the figure.
    """
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def panels(columns: int, height: float = 3.2, rows: int = 1, **options: Any) -> Iterator[Any]:
    """Yield (figure, array of rows x columns axes) in the common style."""
    with canvas(height) as figure:
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def look(index: int) -> dict[str, Any]:
    """Return the colour and marker of the index-th curve of a panel."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKS[index % len(MARKS)]}


def png(figure: Figure) -> bytes:
    """Render the figure as a PNG file."""
    stream = io.BytesIO()
    options: dict[str, Any] = {
        "bbox_inches": "tight",
        "pad_inches": 0.06,
        "metadata": {"Software": None},
    }
    figure.savefig(stream, dpi=DPI, format="png", **options)
    return stream.getvalue()

"""Plot a tuning: error over w_stiff, one curve per w_con."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from erk.analysis.plots import GREY, look, panels, png

TOP = 1.6  # ratios above are cut off


def plot_tuning(card: dict[str, Any]) -> bytes:
    """Render a tuning card's curves with error bars and the choice marked, as a PNG file."""
    with panels(1, 3.8) as (figure, axes):
        axis = axes[0, 0]
        _curves(axis, [row for row in card["curve"] if row["w_stiff"] > 0])
        axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
        if card["w_stiff"]:
            _mark_choice(axis, card)
        axis.set(
            xscale="log", xlabel=r"$w_{stiff}$",
            ylabel="distance to the converged solution,\nrelative to the plain solver's",
            title=f"{card['name']}, {card['settings']['solver']}, {card['settings']['steps']} "
            f"steps, NFE {card['nfe']:g}",
        )  # fmt: skip
        axis.set_ylim(top=TOP)
        axis.set_xticks([0.1, 0.2, 0.4, 0.75, 1.5, 3])
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(title=r"$w_{con}$", loc="center left", bbox_to_anchor=(1, 0.5))
        return png(figure)


def _curves(axis: Axes, rows: list[dict[str, Any]]) -> None:
    for i, w_con in enumerate(sorted({row["w_con"] for row in rows})):
        points = sorted(
            (row["w_stiff"], row["ratio"], row["ratio_se"])
            for row in rows
            if row["w_con"] == w_con and row["ratio"] <= TOP
        )
        if points:
            x, y, error = zip(*points, strict=True)
            axis.errorbar(x, y, error, **look(i), markersize=4, linewidth=1.3, capsize=2,
                          label=f"{w_con:g}")  # fmt: skip


def _mark_choice(axis: Axes, card: dict[str, Any]) -> None:
    choice = (card["w_stiff"], card["w_con"])
    best = next(row for row in card["curve"] if (row["w_stiff"], row["w_con"]) == choice)
    axis.plot(
        best["w_stiff"], best["ratio"], "o", markersize=13, markerfacecolor="none",
        markeredgecolor="black", markeredgewidth=1.5, label="chosen",
    )  # fmt: skip

"""The picture of a tuning: error over w_stiff, a curve for each w_con."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter, ScalarFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#666666")
"""Okabe and Ito 2008: all common kinds of colour-blindness tell them apart."""
MARKS = "os^DvPX*"
TOP = 1.6  # ratios above are cut off: weights that bad are not worth the space


def picture(card: dict[str, Any]) -> bytes:
    """A PNG file of the card's curve, with error bars, the choice marked."""
    rows = [row for row in card["curve"] if row["w_stiff"] > 0]
    plan = card["settings"]
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        for i, gate in enumerate(sorted({row["w_con"] for row in rows})):
            own = sorted(
                (row["w_stiff"], row["ratio"], row["ratio_se"])
                for row in rows if row["w_con"] == gate and row["ratio"] <= TOP
            )  # fmt: skip
            if not own:
                continue
            x, y, error = zip(*own, strict=True)
            axis.errorbar(
                x, y, error, color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)],
                markersize=4, linewidth=1.3, capsize=2, label=f"{gate:g}",
            )  # fmt: skip
        axis.axhline(1, color="#666666", linestyle="--", linewidth=1)
        if card["w_stiff"]:
            best = next(
                r for r in rows if (r["w_stiff"], r["w_con"]) == (card["w_stiff"], card["w_con"])
            )
            axis.plot(
                best["w_stiff"], best["ratio"], "o", markersize=13, markerfacecolor="none",
                markeredgecolor="black", markeredgewidth=1.5, label="chosen",
            )  # fmt: skip
        axis.set(
            xscale="log", xlabel=r"$w_{stiff}$",
            ylabel="distance to the converged solution,\nrelative to the plain solver's",
            title=f"{card['name']}, {plan['solver']}, {plan['steps']} steps, NFE {card['nfe']:g}",
        )  # fmt: skip
        axis.set_ylim(top=TOP)
        axis.set_xticks([0.1, 0.2, 0.4, 0.75, 1.5, 3])
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(title=r"$w_{con}$", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
        plt.close(figure)
    return stream.getvalue()

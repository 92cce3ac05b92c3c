"""The figures of the toy, as PNG bytes, in colours that colour-blind eyes tell apart."""

from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from erk.analysis import toy
from erk.analysis.plots import GREY, canvas, panels, png
from erk.analysis.toy_results import AXES, GUIDANCES, HALF_LENGTH, QUARTILES, Figure1, Line

# Okabe and Ito's colours
BLUE, SKY, GREEN, YELLOW, ORANGE, PURPLE = (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
)  # fmt: skip
COMPONENTS = (BLUE, ORANGE)  # dominant, subdominant
NAME_AT = {"calm": (-0.55, 0.1), "stiff": (-0.45, 1.3)}  # clear of the tree
LOOKS = (  # of the GUIDANCES, in their order
    ("o-", "black"), ("s-", BLUE), ("^-", SKY), ("v--", YELLOW), ("P--", ORANGE), ("x:", PURPLE),
    ("D-", GREEN),
)  # fmt: skip
SHADES = LinearSegmentedColormap.from_list(  # without the palest end: the paper is white
    "stiffness", matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1, 256))
)
RANDOM = 0.5**0.5  # median |cos| of a random direction in the plane


def figure1(result: Figure1) -> bytes:
    """Stiffness over the plane, the two crosses, and the drift along their lines."""
    crosses = {"calm": ("AB", "CD"), "stiff": ("EF", "GH")}
    layout: Any = [["plane", "plane", "plane", "calm"], ["plane", "plane", "plane", "stiff"],
                   ["AB", "CD", "EF", "GH"]]  # fmt: skip
    with canvas(height=6.2) as figure:
        axes = figure.subplot_mosaic(layout, height_ratios=(1, 1, 1.1))
        dots = _stiffness_map(axes["plane"], result)
        bar = axes["plane"].inset_axes((0.05, 0.16, 0.4, 0.04))
        figure.colorbar(dots, cax=bar, orientation="horizontal", extend="max",
                        label=r"stiffness $\rho$")  # fmt: skip
        for where, names in crosses.items():
            lines = {name: result.lines[name] for name in names}
            _cross(axes["plane"], axes[where], lines, result, where)
        for letter, name, axis in zip("bcde", layout[-1], AXES * 2, strict=True):
            where = "calm" if name in crosses["calm"] else "stiff"
            if name != "AB":
                axes[name].sharey(axes["AB"])
            _along(axes[name], f"({letter}) {where},\n{axis}", name, result.lines[name])
            axes[name].tick_params(labelleft=name == "AB")
        axes["AB"].set_ylabel("$-f$ on the eigenvectors")
        figure.supxlabel(r"position on the line $\times 10^3$", fontsize="medium")
        axes["AB"].legend(loc="lower left", fontsize=7)
        return png(figure)


def _dots(panel: Axes, result: Figure1, size: float) -> PathCollection:
    panel.grid(False)
    order = result.rho.argsort()  # the stiffest on top
    top = torch.quantile(result.rho, 0.99).item()
    (x1, x2), rho = result.x[order].T.numpy(), result.rho[order].numpy()
    return panel.scatter(x1, x2, s=size, c=rho, cmap=SHADES, vmin=0, vmax=top, linewidths=0)


def _stiffness_map(plane: Axes, result: Figure1) -> PathCollection:
    plane.set(
        xlim=toy.VIEW[0], ylim=toy.VIEW[1], aspect="equal", xlabel="$x_1$", ylabel="$x_2$",
        title="(a) stiffness at samples of step 29 of 32",
    )  # fmt: skip
    return _dots(plane, result, 3)


def _cross(plane: Axes, zoom: Axes, lines: dict[str, Line], result: Figure1, where: str) -> None:
    """The surroundings of one cross: its lines, letters at their ends, arrows for -f."""
    _dots(zoom, result, 6)
    basis = torch.stack([line.direction for line in lines.values()])  # dominant, subdominant
    for (name, line), colour in zip(lines.items(), COMPONENTS, strict=True):
        points, arrows = line.centre + line.places[:, None] * line.direction, -line.drift @ basis
        zoom.plot(*points.T, color=colour, linewidth=5)
        few = slice(None, None, (len(points) - 1) // 6)
        zoom.quiver(*points[few].T, *arrows[few].T, width=0.007, zorder=3)
        for sign, letter in zip((-1, 1), name, strict=True):
            end = line.centre + sign * 1.4 * HALF_LENGTH * line.direction
            x, y = end.tolist()
            zoom.text(x, y, letter, ha="center", va="center", weight="bold")
    (x, y), half = next(iter(lines.values())).centre.tolist(), 2.6 * HALF_LENGTH
    zoom.set(
        xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[], aspect="equal",
        title=f"{where}: {', '.join(lines)}",
    )  # fmt: skip
    zoom.spines[["top", "right"]].set_visible(True)
    plane.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False))
    plane.annotate(
        ", ".join(lines), (x - half, y), NAME_AT[where], va="center", ha="center", weight="bold",
        arrowprops={"arrowstyle": "-"},
    )  # fmt: skip


def _along(panel: Axes, title: str, name: str, line: Line) -> None:
    """Both components of the sampling direction -f along one line."""
    for values, colour, look, axis in zip(
        -line.drift.T, COMPONENTS, ("-", "--"), AXES, strict=True
    ):
        panel.plot(1e3 * line.places, values, look, color=colour, label=axis)
    panel.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    panel.set(title=title)
    for end, position, align in zip(name, (0.02, 0.98), ("left", "right"), strict=True):
        panel.text(
            position, 0.98, end, transform=panel.transAxes, ha=align, va="top", weight="bold"
        )


def figure2(rows: list[dict[str, Any]], errors: list[dict[str, Any]]) -> bytes:
    """Median |cos| with the dominant eigenvector, and the guided local error, by quartile."""
    medians = {row["quantity"]: row for row in rows if row["median"] == "|cos|"}
    within = {row["quantity"]: row for row in rows if row["median"] == "|cos|, within a step"}
    with panels(2, height=6.0, rows=2) as (figure, axes):
        *aligned, last = axes.flat
        for panel, name, title in zip(
            aligned, ("LTE", "ERK solution difference"), ("(a)", "(b)"), strict=False
        ):
            _bars(panel, {"all states": medians[name]}, (BLUE,))
            _curve(panel, within[name], "D-", ORANGE, "quartiles within each step")
            panel.set_title(f"{title} {name}")
        directions = {"ERK-Guid (drift difference)": medians["ERK drift difference"]}
        directions |= {name: medians[name] for name in ("CFG", "Autoguidance")}
        _bars(aligned[2], directions, (BLUE, ORANGE, GREEN))
        aligned[2].set_title("(c) directions of the guides")
        for panel in aligned:
            panel.axhline(RANDOM, color="black", linestyle=":", label="random direction")
            panel.set(ylim=(0, 1.5), yticks=np.linspace(0, 1, 6), ylabel=r"median $|\cos|$")
            panel.legend(loc="upper left")
        _guided_errors(last, errors)
        for panel in axes.flat:
            panel.set_xticks(range(4), QUARTILES)
            panel.set_xlabel("quartile of stiffness")
        return png(figure)


def _bars(panel: Axes, rows: dict[str, dict[str, Any]], colours: tuple[str, ...]) -> None:
    width = 0.8 / len(rows)
    for i, ((name, row), colour) in enumerate(zip(rows.items(), colours, strict=True)):
        left = np.arange(4) + (i - (len(rows) - 1) / 2) * width
        panel.bar(left, [row[q] for q in QUARTILES], 0.92 * width, color=colour, label=name)


def _curve(panel: Axes, row: dict[str, Any], look: str, colour: str, label: str) -> None:
    panel.plot(range(4), [row[q] for q in QUARTILES], look, color=colour, markersize=5, label=label)


def _guided_errors(panel: Axes, errors: list[dict[str, Any]]) -> None:
    for row, (look, colour) in zip(errors, LOOKS, strict=True):
        if row["guide"] != "none":
            _curve(panel, row, look, colour, row["guide"])
    panel.axhline(1, color="black", linewidth=0.8)
    panel.set(title="(d) local error of one guided step", ylabel="mean |LTE|, guided / Heun")
    panel.set_yscale("log")
    panel.set_ylim(0.2, 3000)  # room for the legend
    panel.set_yticks([0.3, 1, 3, 10, 30, 100], ["0.3", "1", "3", "10", "30", "100"])
    panel.minorticks_off()
    panel.legend(loc="upper right")


def helps(rows: list[dict[str, Any]]) -> bytes:
    """Distances to the exact end points over the number of steps, one curve per guide."""
    titles = {
        "distance": "(a) mean distance to the exact end point",
        "sliced W1": "(b) sliced W1 to the exact end points",
    }
    counts = sorted({row["steps"] for row in rows})
    with panels(2, height=3.7) as (figure, (axes,)):
        for panel, (column, title) in zip(axes, titles.items(), strict=True):
            for name, (look, colour) in zip(GUIDANCES, LOOKS, strict=True):
                y = [_value(row[column]) for row in rows if row["guide"] == name]
                label = "Heun" if name == "none" else name
                panel.plot(counts, y, look, color=colour, label=label, markersize=5)
            panel.set(xscale="log", yscale="log", xlabel="steps", ylabel=column, title=title)
            panel.set_xticks(counts, [str(count) for count in counts])
            panel.minorticks_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return png(figure)


def _value(cell: Any) -> Any:
    """A cell without its standard error."""
    return cell[0] if isinstance(cell, tuple) else cell

"""The tables and the figure of the study of solver error against quality."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes

from erk.analysis.plots import COLOURS, GREY, panels, png
from erk.analysis.toy_results import OPTIMUM
from metrics.jackknife import standard_error
from metrics.report import number, to_markdown
from scripts.paper.rows import Finished, paired
from scripts.paper.tables import limit
from scripts.studies.quality_plan import (
    NUM,
    SEEDS_OF_TRAINING,
    SHARP_WEIGHTS,
    W_CON,
    WEIGHTS,
    plain_name,
    sharp_name,
    weight_name,
)

Measured = Mapping[str, Mapping[str, Finished]]  # network -> row -> its numbers
Value = tuple[float, float | None]  # with its error
SHARES = ("precision", "recall", "accuracy")


def fd_change(row: Finished, base: Finished) -> Value:
    """Return the change of FD in percent of the base's, with the error of paired seeds."""
    change = paired(row, base)["fd"]
    return 100 * change["value"] / base["fd"], 100 * change["error"] / base["fd"]


def distance_ratio(row: Finished, base: Finished) -> Value:
    """Return the distance to the converged solution over the base's, with its error."""
    pairs = zip(row["replicates"]["distance"], base["replicates"]["distance"], strict=True)
    return row["distance"] / base["distance"], standard_error([a / b for a, b in pairs])


def over_networks(values: Sequence[float]) -> Value:
    """Return the mean over networks and their standard deviation."""
    return mean(values), stdev(values) if len(values) > 1 else None


def ways_of(steps: int) -> dict[str, str]:
    """Return {label in the tables: row} of what is compared with plain Heun, in order."""
    plain = plain_name(steps)
    return {
        **{f"w_stiff {w:.3g}": weight_name(steps, w) for w in WEIGHTS},
        "auto": f"{plain}, auto",
        "halved": f"{plain}, halved",
        "converged": f"{plain}, converged",
        **{f"sharpening of w_stiff {w:g} alone": sharp_name(steps, w)
           for w in sorted(SHARP_WEIGHTS)},
    }  # fmt: skip


def pairs_of(
    measured: Measured, networks: Sequence[str], steps: int, name: str
) -> dict[str, tuple[Finished, Finished]]:
    """Return {network: (row, plain Heun of the same seeds)} for the networks that have both."""
    pairs = {n: (measured[n].get(name), measured[n].get(plain_name(steps))) for n in networks}
    return {n: (a, b) for n, (a, b) in pairs.items() if a and b and a["seeds"] == b["seeds"]}


def table_of(measured: Measured, networks: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Return the rows of a table: changes against plain Heun of the same seeds."""
    lines = []
    for way, name in ways_of(steps).items():
        if known := pairs_of(measured, networks, steps, name):
            several = len(networks) > 1
            line: dict[str, Any] = {"row": way}
            for i, network in enumerate(networks):
                column = f"FD, %, seed {i}" if several else "FD, %"
                line[column] = fd_change(*known[network]) if network in known else None
            line["distance / Heun's"] = summary([distance_ratio(*p) for p in known.values()])
            for column in SHARES:
                line[column] = summary([share_change(*p, column) for p in known.values()])
            lines.append(line)
    return lines


def overview(measured: Measured, networks: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per way of sampling; FD and distance by the number of steps."""
    lines = []
    for way in ways_of(max(W_CON)):
        line: dict[str, Any] = {"row": way}
        for title, value in (("FD, %", fd_change), ("distance", distance_ratio)):
            for steps in W_CON:
                pairs = pairs_of(measured, networks, steps, ways_of(steps).get(way, "")).values()
                column = f"{title}, {steps} steps"
                line[column] = summary([value(*pair) for pair in pairs]) if pairs else None
        if any(line[column] for column in [*line][1:]):
            lines.append(line)
    return lines


def groups_of(measured: Measured) -> list[Sequence[str]]:
    """Return the networks that share a table: three training seeds of one, and the others."""
    return [SEEDS_OF_TRAINING, *([n] for n in measured if n not in SEEDS_OF_TRAINING)]


def share_change(row: Finished, base: Finished, column: str) -> Value:
    """Return the change of a share, with the error of paired seeds."""
    change = paired(row, base)[column]
    return change["value"], change["error"]


def summary(values: Sequence[Value]) -> Value:
    """Return the value of one network with its error, or the mean of several with their spread."""
    return values[0] if len(values) == 1 else over_networks([value for value, _ in values])


def text(measured: Measured) -> str:
    """Return the tables as Markdown."""
    tables = [(group, steps, lines) for group in groups_of(measured) for steps in W_CON
              if (lines := table_of(measured, group, steps))]  # fmt: skip
    changes = [value for _, _, lines in tables for line in lines for column, value in line.items()
               if column.startswith("FD") and value is not None]  # fmt: skip
    bound = limit(max(len(changes), 1))
    parts = [HEAD]
    for networks in groups_of(measured):
        if lines := overview(measured, networks):
            parts.append(f"{', '.join(networks)}.\n\n{to_markdown(lines)}")
    parts.append(
        f"## By network and steps\n\n{len(changes)} changes of FD are compared with 0; bold: "
        f"beyond {bound:.2f} standard errors of paired seeds, the level of 95 % for all of them "
        "together (Bonferroni).\n"
    )
    for group, steps, lines in tables:
        bold = [
            (i, column)
            for i, line in enumerate(lines)
            for column, value in line.items()
            if column.startswith("FD") and value and abs(value[0]) > bound * value[1]
        ]
        rows = [(n, one) for n in group if (one := measured[n].get(plain_name(steps)))]
        plain = "; ".join(
            f"{n} FD {number((one['fd'], one['fd_se']))}, distance "
            f"{number((one['distance'], one['distance_se']))}, {one['n']} images"
            for n, one in rows
        )
        parts.append(f"{steps} steps, w_con {W_CON[steps]}. Plain Heun: {plain}.\n\n"
                     f"{to_markdown(lines, (), bold)}")  # fmt: skip
    return "\n".join(parts)


HEAD = f"""# Solver error against quality

`python -m scripts.studies quality`: Heun with ERK-Guid on the EDM schedule against plain Heun with
the same seeds, {NUM} images per row. FD: change in percent. Distance to the converged solution from
the same noise: ratio to plain Heun's. Of digits-early there are networks of three training seeds:
mean ± standard deviation over those that are measured; of one network: value ± standard error.

- halved: twice the steps. converged: DEIS, 128 steps.
- sharpening alone: ERK-Guid on two to four times as many steps, where the solver error is small,
  with the weight that leaves the part of the correction that exceeds Heun's error.
"""


def figure(measured: Measured, networks: Sequence[str] = SEEDS_OF_TRAINING) -> bytes:
    """Draw FD and distance over w_stiff: a column per number of steps, a band over networks."""
    steps = [n for n in W_CON if any(pairs_of(measured, networks, n, weight_name(n, w))
                                     for w in WEIGHTS)]  # fmt: skip
    with panels(max(len(steps), 1), 4.8, 2, sharex=True) as (image, axes):
        image.set_figwidth(2.3 * len(steps) + 1.2)
        for (top, bottom), count in zip(axes.T, steps, strict=False):
            if bottom is not axes[1, 0]:
                bottom.sharey(axes[1, 0])
            top.set_title(f"{count} steps, $w_{{con}}$ {W_CON[count]:g}")
            for axis, value, start in ((top, fd_change, 0.0), (bottom, distance_ratio, 1.0)):
                _panel(axis, measured, networks, count, value, start)
            bottom.set(yscale="log", xlabel="$w_{stiff}$")
        axes[0, 0].set_ylabel("change of FD, %")
        axes[1, 0].set_ylabel("distance to converged\n/ plain Heun's")
        axes[1, 0].yaxis.set_major_formatter("{x:g}")
        pairs = zip(*axes[0, 0].get_legend_handles_labels(), strict=True)
        handles = {label: handle for handle, label in pairs}
        image.legend(
            handles.values(), handles, loc="outside lower center", ncols=len(handles) or 1
        )  # fmt: skip
        return png(image)


def _panel(
    axis: Axes, measured: Measured, networks: Sequence[str], steps: int,
    value: Callable[..., Value], start: float,
) -> None:  # fmt: skip
    """Draw the curves over w_stiff, their band and the controls; `start` is plain Heun's value."""

    def values(name: str) -> list[float]:
        return [value(*pair)[0] for pair in pairs_of(measured, networks, steps, name).values()]

    points = [(0.0, [start])]
    points += [(w, v) for w in WEIGHTS if (v := values(weight_name(steps, w)))]
    x = [w for w, _ in points]
    axis.plot(x, [mean(v) for _, v in points], "o-", color=COLOURS[0], label="ERK-Guid")
    low, high = ([best(v) for _, v in points] for best in (min, max))
    axis.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    plain = plain_name(steps)
    for name, label, colour, style in (
        (f"{plain}, auto", "auto", COLOURS[1], "-."),
        (f"{plain}, halved", "halved steps", COLOURS[2], ":"),
        (f"{plain}, converged", "converged", COLOURS[6], "--"),
    ):
        control = values(name)
        if control and not (label == "converged" and value is distance_ratio):  # 0, on a log axis
            axis.axhline(mean(control), color=colour, linestyle=style, label=label)
    sharp = [(w, v) for w in SHARP_WEIGHTS for v in values(sharp_name(steps, w))]
    if sharp:
        axis.plot(*zip(*sharp, strict=True), "D", color=COLOURS[3], label="sharpening alone")
    axis.axhline(start, color=GREY, linewidth=0.8)
    axis.axvline(OPTIMUM, color=GREY, linewidth=0.8, linestyle=":")

"""The tables and the figure of the study of solver error against quality."""

from collections.abc import Mapping, Sequence
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
    CONVERGED,
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
HIGHEST = 1e-3, 1e2  # limits of the ratio of distances in the figure


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


def names_of(steps: int) -> list[str]:
    """Return the names of the rows that are compared with plain Heun, in the tables' order."""
    plain = plain_name(steps)
    weights = [weight_name(steps, w) for w in WEIGHTS]
    sharp = [sharp_name(steps, w) for w in SHARP_WEIGHTS]
    return [*weights, f"{plain}, auto", f"{plain}, halved", CONVERGED, *sharp]


def table_of(measured: Measured, networks: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Return the rows of a table: changes against plain Heun of the same seeds."""
    lines = []
    for name in names_of(steps):
        pairs = {n: (measured[n].get(name), measured[n].get(plain_name(steps))) for n in networks}
        known = {n: (a, b) for n, (a, b) in pairs.items() if a and b and a["seeds"] == b["seeds"]}
        if not known:
            continue
        line: dict[str, Any] = {"row": name.removeprefix(f"{plain_name(steps)}, ")}
        line |= {f"FD, %, {n}": fd_change(*pair) for n, pair in known.items()}
        line["distance / Heun's"] = summary([distance_ratio(*pair) for pair in known.values()])
        for column in SHARES:
            line[column] = summary([share_change(*pair, column) for pair in known.values()])
        lines.append(line)
    return lines


def share_change(row: Finished, base: Finished, column: str) -> Value:
    """Return the change of a share, with the error of paired seeds."""
    change = paired(row, base)[column]
    return change["value"], change["error"]


def summary(values: Sequence[Value]) -> Value:
    """Return the value of one network with its error, or the mean of several with their spread."""
    return values[0] if len(values) == 1 else over_networks([value for value, _ in values])


def text(measured: Measured) -> str:
    """Return the tables as Markdown."""
    parts = [HEAD]
    groups = [SEEDS_OF_TRAINING, *([n] for n in measured if n not in SEEDS_OF_TRAINING)]
    tables = [(group, steps, lines) for group in groups for steps in W_CON
              if (lines := table_of(measured, group, steps))]  # fmt: skip
    count = sum(any(c.startswith("FD") for c in line) * len([c for c in line if c[:2] == "FD"])
                for _, _, lines in tables for line in lines)  # fmt: skip
    bound = limit(max(count, 1))
    parts.append(
        f"{count} changes of FD are compared with 0. Bold: beyond {bound:.2f} standard errors, "
        "which is the level of 95 % for all of them together (Bonferroni).\n"
    )
    for group, steps, lines in tables:
        bold = [(i, c) for i, line in enumerate(lines) for c, v in line.items()
                if c[:2] == "FD" and abs(v[0]) > bound * v[1]]  # fmt: skip
        plain = "; ".join(
            f"{n}: FD {number((one['fd'], one['fd_se']))}, distance "
            f"{number((one['distance'], one['distance_se']))}, {one['n']} images"
            for n in group if (one := measured[n].get(plain_name(steps)))
        )  # fmt: skip
        parts.append(f"{', '.join(group)}, {steps} steps (w_con {W_CON[steps]}). Plain Heun: "
                     f"{plain}.\n\n{to_markdown(lines, (), bold)}")  # fmt: skip
    return "\n".join(parts)


HEAD = f"""# Solver error against quality

`python -m scripts.studies quality`: Heun with ERK-Guid on the EDM schedule against plain Heun with
the same seeds, {NUM} images per row (mnist: those of Table 2). FD: change in percent ± standard
error. Other columns: change (distance: ratio) ± standard error; for several networks the mean ±
standard deviation over them. halved: twice the steps. converged: DEIS, 128 steps. sharpening alone:
ERK-Guid on finer steps with the weight that leaves the part of the correction beyond Heun's error.
"""


def figure(measured: Measured, networks: Sequence[str] = SEEDS_OF_TRAINING) -> bytes:
    """Draw FD and distance over w_stiff, a column per number of steps, a band over networks."""
    steps = sorted(W_CON, reverse=True)
    with panels(len(steps), 4.6, 2, sharex=True) as (image, axes):
        image.set_figwidth(2.3 * len(steps) + 0.6)
        for (top, bottom), count in zip(axes.T, steps, strict=True):
            top.set_title(f"{count} steps, $w_{{con}}$ {W_CON[count]:g}")
            for axis, value in ((top, fd_change), (bottom, distance_ratio)):
                _panel(axis, measured, networks, count, value)
            top.axhline(0, color=GREY, linewidth=0.8)
            bottom.axhline(1, color=GREY, linewidth=0.8)
            bottom.set(yscale="log", xlabel="$w_{stiff}$")
        axes[0, 0].set_ylabel("change of FD, %")
        axes[1, 0].set_ylabel("distance to converged\n/ plain Heun's")
        handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
        image.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
        return png(image)


def _panel(axis: Axes, measured: Measured, networks: Sequence[str], steps: int, value: Any) -> None:
    """Draw the curve over w_stiff, its band, and the controls."""

    def values(name: str) -> list[float]:
        pairs = [(measured[n].get(name), measured[n].get(plain_name(steps))) for n in networks]
        return [value(a, b)[0] for a, b in pairs if a and b]

    start = 0.0 if value is fd_change else 1.0
    points = [(0.0, [start])]
    points += [(w, v) for w in WEIGHTS if (v := values(weight_name(steps, w)))]
    x = [w for w, _ in points]
    axis.plot(x, [mean(v) for _, v in points], "o-", color=COLOURS[0], label="ERK-Guid")
    low, high = ([best(v) for _, v in points] for best in (min, max))
    axis.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    for name, label, colour, style in (
        (f"{plain_name(steps)}, auto", "auto", COLOURS[1], "-."),
        (f"{plain_name(steps)}, halved", "halved steps", COLOURS[2], ":"),
        (CONVERGED, "converged", COLOURS[6], "--"),
    ):
        if (found := values(name)) and not (name == CONVERGED and value is distance_ratio):
            axis.axhline(mean(found), color=colour, linestyle=style, label=label)
    sharp = [(w, v) for w in SHARP_WEIGHTS if (v := values(sharp_name(steps, w)))]
    for i, (w, v) in enumerate(sharp):
        error = [[mean(v) - min(v)], [max(v) - mean(v)]]
        axis.errorbar(w, mean(v), error, fmt="D", color=COLOURS[3], capsize=3, markersize=5,
                      label="" if i else "sharpening alone", zorder=3)  # fmt: skip
    axis.axvline(OPTIMUM, color=GREY, linewidth=0.8, linestyle=":")

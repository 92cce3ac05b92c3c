"""Plot a trace of sampling: stiffness, gate and error along sigma."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from erk.analysis.plots import GREY, look, panels, png

COLUMNS = ("stiffness", "gate", "df", "push")

Trace = Mapping[str, np.ndarray]
"""sigmas [S] and stiffness, gate, df, push [S, N], for S steps and N samples."""


def plot_trace(traces: Trace | Mapping[str, Trace], w_con: float | None = None) -> bytes:
    """Plot traces in three panels over sigma, which falls from left to right.

    Curves are medians over the samples, bands reach from quartile to quartile.

    Parameters
    ----------
    traces : mapping
        One trace (sigmas [S]; stiffness, gate, df, push [S, N]), or several by name.
    w_con : float, optional
        Draw this threshold of the stiffness, and the share of samples above it: they are
        corrected only if the run has ERK-Guid.

    Returns
    -------
    bytes
        The figure as a PNG file.

    Raises
    ------
    ValueError
        Arrays of another shape or type.
    """
    one = not all(isinstance(value, Mapping) for value in traces.values())
    named: Mapping[str, Trace] = {"trace": traces} if one else traces  # type: ignore[assignment, dict-item]
    for name, trace in named.items():
        check_trace(trace, name)
    with panels(3, 3.0) as (figure, ((stiffness, gate, error),)):
        for i, (name, trace) in enumerate(named.items()):
            colour = look(i)["color"]
            _curve(stiffness, trace, "stiffness", _plain(name), color=colour)
            known, share = ~np.isnan(trace["gate"]).any(1), trace["gate"].mean(1)
            gate.plot(trace["sigmas"][known], share[known], color=colour, marker=".",
                      label="corrected" if i == 0 else None)  # fmt: skip
            if w_con is not None:
                above = (trace["stiffness"] > w_con).mean(1)
                gate.plot(trace["sigmas"][known], above[known], color=colour, linestyle=":",
                          label="above w_con" if i == 0 else None)  # fmt: skip
            _curve(error, trace, "df", "drift difference", color=colour)
            _curve(error, trace, "push", "correction", color=colour, linestyle=":")
        if w_con is not None:
            stiffness.axhline(w_con, color=GREY, linestyle="--", linewidth=1, label="w_con")
        stiffness.set(title="estimated stiffness", yscale="log")
        gate.set(title="share of samples", ylim=(-0.04, 1.04))
        error.set(title="embedded error of the pair", yscale="log")
        for panel in (stiffness, gate, error):
            panel.set(xscale="log", xlabel="noise level sigma")
            panel.invert_xaxis()
        stiffness.legend()
        gate.legend()
        error.legend()
        return png(figure)


def check_trace(trace: Trace, name: str) -> None:
    """Raise ValueError for arrays that are no trace; NaN stands where a step has no pair."""
    arrays = {key: np.asarray(trace[key]) for key in ("sigmas", *COLUMNS) if key in trace}
    if len(arrays) <= len(COLUMNS):
        raise ValueError(f"{name} is no trace: it lacks one of sigmas, {', '.join(COLUMNS)}")
    for key, values in arrays.items():
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{name} is no trace: its {key} are {values.dtype}, not real numbers")
    sigmas, shape = arrays.pop("sigmas"), arrays["stiffness"].shape
    if sigmas.ndim != 1 or not (np.isfinite(sigmas) & (sigmas > 0)).all():
        raise ValueError(f"{name} is no trace: its sigmas must be positive numbers [S]")
    if len(shape) != 2 or 0 in shape or shape[0] != len(sigmas):
        raise ValueError(f"{name} is no trace: its stiffness is not [S, N], S = {len(sigmas)}")
    if {values.shape for values in arrays.values()} != {shape}:
        raise ValueError(f"{name} is no trace: {', '.join(COLUMNS)} differ in shape")


def _plain(name: str) -> str:
    """Return a label that a legend shows as it is: no formulas, none hidden for its "_"."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _curve(panel: Any, trace: Trace, name: str, label: str, **style: Any) -> None:
    """Draw median and quartiles; a logarithmic axis has no steps where all are 0 or NaN.

    A panel's legend names each label once.
    """
    values = np.where(np.isfinite(trace[name]), trace[name], np.nan)
    known = (values > 0).any(1)
    sigmas, values = trace["sigmas"][known], values[known]
    if not len(sigmas):
        return
    low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=1)
    is_named = label in panel.get_legend_handles_labels()[1]
    panel.plot(sigmas, middle, marker=".", label=None if is_named else label, **style)
    panel.fill_between(sigmas, low, high, color=style["color"], alpha=0.18, linewidth=0)

"""Figures are drawn beside the user's pyplot, whose backend and settings stay as they are."""

import subprocess
import sys

import matplotlib
import numpy as np

from erk.analysis.plots import panels, png
from erk.analysis.trace_plot import plot_trace

TRACE = {
    "sigmas": np.array([10.0, 1.0, 0.1]),
    **{name: np.full((3, 2), 0.5) for name in ("stiffness", "gate", "df", "push")},
}


def test_the_backend_of_the_user_stays():
    """Finding 14; a new process, since pyplot may be imported here already."""
    code = (
        "import matplotlib, sys; matplotlib.use('svg'); "
        "from erk.analysis.plots import panels, png\n"
        "with panels(1) as (figure, axes): png(figure)\n"
        "assert matplotlib.get_backend() == 'svg' and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_the_user_neither_change_the_figure_nor_are_changed():
    usual = plot_trace(TRACE)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert plot_trace(TRACE) == usual
        assert matplotlib.rcParams["font.size"] == 30
    assert usual.startswith(b"\x89PNG")


def test_panels_share_what_they_are_given():
    with panels(2, rows=2, sharex=True) as (figure, axes):
        axes[0, 0].plot([1, 2, 3])
        assert axes.shape == (2, 2) and axes[1, 0].get_xlim() == axes[0, 0].get_xlim()
        assert png(figure) == png(figure)

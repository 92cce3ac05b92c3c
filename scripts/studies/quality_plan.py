"""The rows of the study of solver error against quality, fixed before any was sampled."""

from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from erk.analysis.toy_results import OPTIMUM
from scripts.paper.config import Experiment, Request, Row, Sampled, SampledOptions, Small
from scripts.paper.scales import at_scale
from scripts.studies.rows import RESULTS

NETWORKS = ("digits-early", "digits-early-1", "digits-early-2", "digits", "mnist")
SEEDS_OF_TRAINING = NETWORKS[:3]  # one network, trained from three seeds
W_CON = {32: 0.5, 16: 0.3, 8: 0.1, 6: 0.1}
"""Steps -> w_con of the released script, which has no 6 steps."""
WEIGHTS = (0.25, OPTIMUM, 0.5, 1.0, 1.5, 2.0, 2.5)
SHARPENED = {32: 2, 8: 4}  # steps -> intervals of the control per interval
SHARP_WEIGHTS = (2.0, 1.0)
NUM = 5000  # images per row
HEUN = {"preset": "edm2-img512-s-fid", "solver": "heun", "schedule": "edm", "sigma_min": 0.002,
        "sigma_max": 80, "rho": 7, "w_stiff": 0.0}  # fmt: skip
"""The paper's settings; its network is represented by the scale's."""
DEIS = {"solver": "deis", "solver_option": ["order=4", "mode=tab"], "steps": 128}


def sharpening(w_stiff: float, parts: int) -> float:
    """Return the w_stiff that sharpens alone as much as `w_stiff` does on a coarser schedule.

    ERK-Guid adds (w² - 1/6) h³ rho² <f, v> v to the exact answer of a Heun step of length h, to
    leading order: -1/6 is Heun's error. On `parts` steps of length h / parts the same sum needs the
    returned weight u with u² - 1/6 = parts² (w² - 1/6), while the error itself is smaller.
    """
    return sqrt(OPTIMUM**2 + parts**2 * (w_stiff**2 - OPTIMUM**2))


def plain_name(steps: int) -> str:
    """Return the name of the row without ERK-Guid."""
    return f"{steps} steps"


def weight_name(steps: int, w_stiff: float) -> str:
    """Return the name of a row with ERK-Guid."""
    return f"{steps} steps, w_stiff {w_stiff:.3g}"


def sharp_name(steps: int, w_stiff: float) -> str:
    """Return the name of the control row that sharpens as ERK-Guid does, without its error."""
    return f"{steps} steps, sharpening of w_stiff {w_stiff:g} alone"


def rows_of(steps: int) -> Iterator[Row]:
    """Yield the rows of a number of steps beside plain Heun and auto."""
    plain, w_con = plain_name(steps), W_CON[steps]
    settings: dict[str, dict[str, Any]] = {
        weight_name(steps, w): {"steps": steps, "w_stiff": w, "w_con": w_con} for w in WEIGHTS
    }
    settings[f"{plain}, halved"] = {"steps": 2 * steps}
    settings[f"{plain}, converged"] = DEIS  # the same images at every number of steps
    if parts := SHARPENED.get(steps):
        for w in SHARP_WEIGHTS:  # the last step, to sigma = 0, has no parts
            settings[sharp_name(steps, w)] = {
                "steps": parts * (steps - 1) + 1, "w_stiff": sharpening(w, parts), "w_con": w_con
            }  # fmt: skip
    for name, one in settings.items():
        yield Row(name=name, settings=HEUN | one, against=plain)


def experiment(network: str, num: int = NUM, results: Path = RESULTS) -> Experiment:
    """Return the rows of a network; at_scale adds those of auto, and the seeds of Table 2."""
    plain = [Row(name=plain_name(n), settings=HEUN | {"steps": n}) for n in W_CON]
    rows = [row for steps in W_CON for row in rows_of(steps)]
    config = Sampled(
        name="quality", kind="sampled", title="", paper="", rows=plain,
        small=Small(rows=rows, num=num),
        options=SampledOptions(group_by=["steps"]),
    )  # fmt: skip
    request = Request(scale=network, results=results)
    return Experiment(at_scale(config, request), request)


def restricted(one: Experiment, steps: Sequence[int]) -> Experiment:
    """Return an experiment of which only the rows of `steps` are to be measured."""
    names = tuple(map(plain_name, steps))
    wanted = [str(i) for i, row in enumerate(one.config.rows) if row.name.startswith(names)]
    return one._replace(request=one.request._replace(rows=",".join(wanted)))

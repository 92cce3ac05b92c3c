"""Tune w_stiff and w_con: search on some seeds, judge the choice on others."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from erk.calibration.parts import Parts
from erk.calibration.problem import (
    Draw,
    Problem,
    check_evaluations,
    check_plain,
    check_seed_lists,
    count_nfe,
    problem_for,
    with_levels,
)
from erk.calibration.search import (
    FIRST,
    THRESHOLDS,
    WEIGHTS,
    Search,
    Trial,
    converged_ends,
    measure,
    most_runs,
    ratio_of,
    search,
)
from erk.calibration.solver_error import EVALUATIONS, Ratio
from erk.method.fields import field
from erk.method.settings import Settings, check_names

VERSION = 1  # of the numbers of a tuning; raise it when they change
SEEDS, HELD_OUT = range(200_000, 200_256), range(210_000, 210_256)
FINER = 4  # evaluations of the converged solution per step of the solver, at least
OFF = "--w-stiff 0"


class Tuning(NamedTuple):
    """Weights for one model, solver and schedule: `erk.sample(..., w_stiff=..., w_con=...)`."""

    w_stiff: float  # 0: no weights beat the plain solver beyond noise, on both lists of seeds
    w_con: float
    ratio: Ratio  # error over the plain solver's, on the held-out seeds
    report: dict[str, Any]  # the curve and the held-out errors, as JSON


def tune(
    model: Any,
    *,
    solver: str = "heun",
    steps: int = 32,
    seeds: Sequence[int] = SEEDS,
    held_out: Sequence[int] = HELD_OUT,
    guide_model: Any = None,
    evaluations: int | None = None,
    check: bool = False,
    batch: int = 64,
    draw: Draw | None = None,
    folder: Path | None = None,
    **settings: Any,
) -> Tuning:
    """Choose ERK-Guid's w_stiff and w_con for a denoiser, a solver and a number of steps.

    The criterion is the distance to the converged solution of the ODE from the same noise: no FID,
    no real images.

    Parameters
    ----------
    model : denoiser
        D(x, sigma, labels) with `sample_shape`; an `erk.Model` or an adapter (`erk.from_v`, ...).
    solver, steps, **settings
        Fields of `erk.Settings`; with `erk_scale` and `twin` the weights are chosen for these.
    seeds, held_out : sequence of int
        Seeds to choose on, and other seeds to judge the choice on; at least 8 each.
    guide_model : denoiser, optional
        The guiding network, for guidance other than 1.
    evaluations : int, optional
        Network evaluations of a converged solution; default: 4 per step, at least 128.
    check : bool
        Also measure the whole grid on the held-out seeds.
    batch : int
        Samples per network evaluation.
    draw : callable, optional
        seeds -> unit-variance noise [B, ...] and labels; default: `erk.noise_and_labels`.
    folder : Path, optional
        Keeps intermediate results, so that a stopped tuning continues. Networks are identified by
        their `sha256`.

    Raises
    ------
    ValueError
        For seeds in both lists, too few of them, settings that do not go together or would be
        ignored (weights, another correction, noise), and where no step has a pair.
    NonFiniteError
        If a network produces NaN or infinity.
    """
    check_names(settings, "tune")
    problem = problem_for(
        model, Settings(solver=solver, steps=steps, **settings), guide_model, draw, batch
    )
    check_problem(problem, seeds, held_out)
    if evaluations is None:
        evaluations = usual_evaluations(problem.settings)
    evaluations = check_evaluations(evaluations)
    key = None if folder is None else tuning_key(problem, seeds, held_out, evaluations, check)
    return tune_problem(problem, seeds, held_out, evaluations, check, Parts(folder, key, VERSION))


def check_problem(problem: Problem, seeds: Sequence[int], held_out: Sequence[int]) -> None:
    """Raise ValueError for settings that a tuning would ignore, and for unsuitable seeds."""
    check_plain(problem.settings, "tune", honoured=("erk_scale", "twin"))
    check_seeds(seeds, held_out)


def usual_evaluations(settings: Settings) -> int:
    """Return the evaluations of a converged solution unless another number is given."""
    return max(EVALUATIONS, FINER * settings.steps)


def tuning_key(
    problem: Problem, seeds: Sequence[int], held_out: Sequence[int], evaluations: int, check: bool
) -> list[Any]:
    """Return all that the numbers of a tuning depend on, as JSON."""
    return [problem.key(seeds, held_out), evaluations, check]


def tune_problem(
    problem: Problem,
    seeds: Sequence[int],
    held_out: Sequence[int],
    evaluations: int,
    check: bool,
    parts: Parts,
) -> Tuning:
    """Search on `seeds`, judge on `held_out`; intermediate results are kept in `parts`."""
    ends = converged_ends(problem, seeds, evaluations, parts, "converged")
    result = search(problem, seeds, ends, parts)
    ends = converged_ends(problem, held_out, evaluations, parts, "held-out-converged")
    blank = result.choice.errors[:0]
    grid = [trial for trial in result.trials if check or trial is result.choice]
    rest = [trial for trial in grid[1:] if trial is not result.choice]
    fresh = [t._replace(errors=blank) for t in (result.trials[0], result.choice, *rest)]
    plain, choice, *others = measure(problem, held_out, ends, fresh, parts, "held-out")
    report = _search_report(result, problem.settings.erk_scale)
    report["held_out"] = _row(choice, plain) | {"plain_error": plain.errors.mean().item()}
    held_out_ratio = ratio_of(choice, plain)
    if held_out_ratio.value >= 1:  # the held-out seeds do not confirm the choice
        report["flags"] = OFF
    if check:
        best = min((plain, choice, *others), key=lambda trial: trial.errors.mean().item())
        report["grid_best"] = _row(best, plain)
        report["over_grid_best"] = (choice.errors.mean() / best.errors.mean()).item()
    off = report["flags"] == OFF
    w_stiff, w_con = (0.0, Settings().w_con) if off else (choice.w_stiff, choice.w_con)
    return Tuning(w_stiff, w_con, held_out_ratio, report)


def check_seeds(seeds: Sequence[int], held_out: Sequence[int]) -> None:
    """Raise ValueError for too few seeds, or seeds that are in both lists."""
    check_seed_lists(seeds, held_out, (FIRST, FIRST))


def count_runs(seeds: int, held_out: int, check: bool) -> int:
    """Bound the trajectories of the solver in the search and on the held-out seeds."""
    judged = len(WEIGHTS) * THRESHOLDS + 3 if check else 2
    return most_runs(seeds) + held_out * judged


def cost_of(problem: Problem, seeds: int, held_out: int, evaluations: int, check: bool) -> str:
    """Describe the cost in network evaluations."""
    nfe = count_nfe(with_levels(problem.settings, problem.model))
    runs, ends = count_runs(seeds, held_out, check), seeds + held_out
    fine = (evaluations, evaluations if nfe[1] else 0)
    spent = [ends * f + runs * n for f, n in zip(fine, nfe, strict=True)]
    guide = f" and {spent[1]:,.0f} of the guide" if spent[1] else ""
    return (
        f"at most {spent[0]:,.0f} evaluations of the network{guide}, as many as "
        f"{sum(spent) / sum(nfe):,.0f} samples of this solver take: {ends} converged solutions of "
        f"{evaluations} evaluations, {runs} runs of {nfe[0]:g}"
    )


def _search_report(result: Search, scale: str) -> dict[str, Any]:
    w_stiff, w_con = result.choice.w_stiff, result.choice.w_con
    more = "" if scale == field("erk_scale").default else f" --erk-scale {scale}"
    return {
        "w_stiff": w_stiff,
        "w_con": w_con if w_stiff else None,
        "flags": f"--w-stiff {w_stiff:g} --w-con {w_con:g}{more}" if w_stiff else OFF,
        "curve": [_row(trial, result.trials[0]) for trial in result.trials],
    }


def _row(trial: Trial, plain: Trial) -> dict[str, Any]:
    """Return mean error and its ratio to the plain solver's, with their standard errors."""
    ratio, ratio_se = ratio_of(trial, plain)
    return {
        "w_stiff": trial.w_stiff,
        "w_con": trial.w_con if trial.w_stiff else None,
        "seeds": len(trial.errors),
        "error": trial.errors.mean().item(),
        "error_se": (trial.errors.std() / math.sqrt(len(trial.errors))).item(),
        "ratio": ratio,
        "ratio_se": ratio_se,
    }

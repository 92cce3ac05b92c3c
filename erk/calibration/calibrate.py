"""Calibrate: the best sampler for a network at a number of evaluations, as one card.

Three sets of seeds; reference paths of 128 evaluations give every converged solution.

1. Every published sampler within the budget (solver x schedule x first step) is compared, plain,
   with `auto` and with coefficients fitted step by step, on a few seeds; the best go on.
2. Their noise levels move: dynamic programming along the reference paths (GITS), then
   Gauss-Newton on ln sigma, with the coefficients fitted again at every trial.
3. Levels and coefficients are fitted together, end to end, against the final state: of the solvers
   among the best of two schedules, two at most.

Fits see the first set alone. The second set chooses among all contenders; where none is better than
the published sampler by a standard error, that one stays. The third set gives the errors that the
card reports: neither fit nor choice has seen it. What the caller fixes (solver, schedule,
corrections) is not searched: one solver with "stepwise" is a card of coefficients alone, with
"weights" the choice of w_stiff and w_con.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erk.calibration.candidates import published, solver_name
from erk.calibration.card import Card, sampler_of
from erk.calibration.contest import (
    FINALISTS,
    KINDS,
    SCREENED,
    Contender,
    Contest,
    Plan,
    Samples,
    draw_samples,
    first,
    measure,
)
from erk.calibration.end_to_end import ROUNDS, TRIES
from erk.calibration.fit import USUAL
from erk.calibration.levels import GAMMAS
from erk.calibration.parts import Parts
from erk.calibration.problem import (
    Draw,
    Problem,
    check_evaluations,
    check_plain,
    networks,
    problem_for,
)
from erk.calibration.search import FIRST, most_runs
from erk.calibration.solver_error import EVALUATIONS, mean_with_error, ratio
from erk.method.arguments import require, takes
from erk.method.corrections import DIRECTIONS
from erk.method.point import norm, to_double
from erk.method.settings import Settings, check_settings
from erk.method.values import number

VERSION = 4  # of the numbers of a calibration; raise it when they change
FIRST_SEED = 900_000
MOST_SEEDS, MOST_NFE = 100_000, 1000  # a plan of more takes hours and gigabytes before it starts
ROLES = ("to fit", "to choose", "to report")
CORRECTIONS = ("auto", "weights", "stepwise", "end-to-end")
SEARCHED = ("auto", "stepwise", "end-to-end")
"""Corrections that are compared unless others are given; `weights` are w_stiff and w_con."""
REPEATABLE = 1e-3  # relative difference of two evaluations of the same input, at most
FAR = 2.0  # from sigma_data: ratio of the spread of samples above which calibrate warns


def calibrate(
    model: Any,
    nfe: int = 8,
    *,
    seeds: int = 32,
    guide_model: Any = None,
    corrections: Sequence[str] = SEARCHED,
    directions: Sequence[str] = USUAL,
    evaluations: int = EVALUATIONS,
    batch: int = 32,
    draw: Draw | None = None,
    folder: Path | None = None,
    progress: Callable[[], object] = lambda: None,
    guide_labels: Tensor | None = None,
    **settings: Any,
) -> Card:
    """Search for the sampler that best follows a denoiser's ODE with `nfe` evaluations per sample.

    `erk.sample(..., card=card)` uses it. The criterion is the mean distance to the converged
    solution from the same noise; neither FID nor real images are used.

    Parameters
    ----------
    model : denoiser
        D(x, sigma, labels) with `sample_shape`; an `erk.Model` or an adapter (`erk.from_v`, ...).
    nfe : int
        Largest number of network evaluations per sample.
    seeds : int
        Number of seeds for the fits; as many others are for the choice, and as many again for the
        reported errors.
    guide_model : denoiser, optional
        The guiding network, for guidance other than 1.
    corrections : sequence of str
        Corrections that compete: "auto", "weights" (w_stiff and w_con), "stepwise" and
        "end-to-end"; (): none.
    directions : sequence of str
        Names in `erk.method.corrections.DIRECTIONS` for which coefficients are fitted.
    evaluations : int
        Network evaluations per reference path.
    batch : int
        Samples per network call.
    draw : callable, optional
        seeds -> unit-variance noise [B, ...] and labels; default: `erk.noise_and_labels`.
    folder : Path, optional
        Keeps intermediate results, so that a stopped calibration continues. Networks are
        identified by their `sha256`.
    progress : callable
        Called after every intermediate result, such as `tqdm(desc="Calibrating").update`.
    guide_labels : Tensor, optional
        Labels of the guide, one row [1, ...] for all samples, such as those of no class for CFG
        within one network; default: the labels of the sample.
    **settings
        Fields of `erk.Settings` that are given, not searched: solver, schedule, afs, guidance, ...

    Returns
    -------
    Card
        The sampler, the networks that it is for, and its errors and those of published samplers on
        seeds that neither the fit nor the choice has used. `card.save(path)` writes it to a file.

    Raises
    ------
    ValueError
        For too few evaluations or seeds, settings that do not go together or that a card cannot
        hold, and a denoiser that gives different results for the same input.
    NonFiniteError
        If a network produces NaN or infinity.
    """
    check_settings(settings, calibrate)
    require(takes(progress, 0), "progress", "a function without arguments", progress)
    is_draw = draw is None or takes(draw, 1)
    require(is_draw, "draw", "a function of a list of seeds", draw)
    problem, plan = plan_of(
        model, nfe, settings, seeds, guide_model, corrections, directions, evaluations, batch,
        draw, guide_labels,
    )  # fmt: skip
    key = None if folder is None else key_of(problem, plan)
    return calibrate_problem(problem, plan, Parts(folder, key, VERSION, progress))


def plan_of(
    model: Any,
    nfe: int,
    fixed: dict[str, Any],
    seeds: int,
    guide_model: Any,
    corrections: Sequence[str],
    directions: Sequence[str],
    evaluations: int,
    batch: int,
    draw: Draw | None,
    guide_labels: Tensor | None = None,
) -> tuple[Problem, Plan]:
    """Check the arguments of `calibrate`; no network is evaluated. Raises ValueError."""
    base = Settings(**fixed)
    check_plain(base, "calibrate")
    if callable(base.solver):
        raise ValueError("a card knows solvers by name: give a solver of docs/solvers.md.")
    check_choice("corrections", corrections, CORRECTIONS)
    check_choice("directions", directions, tuple(DIRECTIONS))
    if not directions:
        raise ValueError(f"directions takes at least one of {', '.join(DIRECTIONS)}.")
    seeds = number("seeds", seeds, int, least=FIRST, most=MOST_SEEDS)
    nfe = number("nfe", nfe, int, least=1, most=MOST_NFE)
    candidates = published(nfe, fixed, model)
    problem = problem_for(model, candidates[0], guide_model, draw, batch, guide_labels)
    plan = Plan(
        nfe, seeds, candidates, tuple(corrections), tuple(directions),
        check_evaluations(evaluations), "schedule" not in fixed,
    )  # fmt: skip
    return problem, plan


def check_choice(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError for an unknown or a repeated value."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or {*values} - {*known} or len({*values}) < len(values):
        raise ValueError(
            f"{name} takes one or more of {', '.join(known)}, each once, as a list, not {values!r}."
        )


def seeds_of(plan: Plan) -> list[range]:
    """Return the seeds to fit on, to choose on and to report on."""
    starts = [FIRST_SEED + i * plan.seeds for i in range(len(ROLES))]
    return [range(start, start + plan.seeds) for start in starts]


def key_of(problem: Problem, plan: Plan) -> list[Any]:
    """Return all that the numbers of a calibration depend on, as JSON."""
    candidates = [one.identity() for one in plan.candidates]
    return [problem.key(*seeds_of(plan)), candidates, *plan[:2], *plan[3:]]


def calibrate_problem(problem: Problem, plan: Plan, parts: Parts) -> Card:
    """Fit, choose and report; intermediate results are kept in `parts`."""
    fitting, choosing, reporting = seeds_of(plan)
    check_repeatable(problem, fitting)
    fitted = draw_samples(problem, fitting, "fit", plan, parts, paths=True)
    warn_of_spread(problem.model, fitted)
    compared = draw_samples(problem, choosing, "choose", plan, parts)
    contenders = Contest(problem, plan, parts, fitted, compared).run()
    best = chosen_of(contenders)
    fresh = draw_samples(problem, reporting, "report", plan, parts)
    samplers = {"heun": heun_of(plan, problem), "published": contenders[0].settings,
                "card": best.settings}  # fmt: skip
    errors = {
        name: measure(problem._replace(settings=one), fresh)
        for name, one in samplers.items()
        if one is not None
    }
    report: dict[str, Any] = {name: summary(values) for name, values in errors.items()}
    report["ratio"] = ratio(errors["card"], errors["published"])._asdict()
    rough = first(fresh, problem.batch)[0]
    change = {"reference_change_from_half": change_from_half(problem, rough, plan)}
    more = {"contenders": [described(one) for one in contenders], **change}
    names = networks(problem.model, problem.guide_model, problem.settings.guidance)
    chosen = Settings(**sampler_of(best.settings), erk=best.settings.erk)
    return Card(chosen, names, plan.nfe, report, more)


def chosen_of(contenders: Sequence[Contender]) -> Contender:
    """Return the best contender, or the published sampler (the first) where none surely wins."""
    best = min(contenders, key=lambda one: one.error)
    value, error = ratio(best.errors, contenders[0].errors)
    return best if value + error < 1 else contenders[0]


def heun_of(plan: Plan, problem: Problem) -> Settings | None:
    """Return Heun with EDM's schedule within the budget; None if it does not fit."""
    steps = (plan.nfe + 1) // 2
    if steps < 2:
        return None
    return replace(
        problem.settings, solver="heun", solver_options={}, schedule="edm", steps=steps, rho=None,
        afs=False, denoise_to_zero=False,
    )  # fmt: skip


def change_from_half(problem: Problem, samples: Samples, plan: Plan) -> float:
    """Return the mean distance between reference solutions of all and of half the evaluations."""
    half = plan._replace(evaluations=max(2, plan.evaluations // 2))
    count = len(samples.noise)
    alone = problem._replace(draw=lambda _: (samples.noise, samples.labels), batch=count)
    again = draw_samples(alone, range(count), "half", half, Parts())[0]
    return norm(to_double(again.ends[0]) - to_double(samples.ends[0])).mean().item()


def summary(values: Tensor) -> dict[str, float]:
    """Return the numbers of the distances of fresh samples [n]: one far sample hides in a mean."""
    middle, most = values.quantile(0.5).item(), values.max().item()
    return mean_with_error(values) | {"median": middle, "greatest": most, "seeds": len(values)}


def described(one: Contender) -> dict[str, Any]:
    """Return a contender as JSON: what it is, and its error on the seeds of the choice."""
    s = one.settings
    return {
        "solver": s.solver, "solver_options": s.solver_options, "afs": s.afs,
        "schedule": s.levels if isinstance(s.levels, str) else one.levels, "levels": one.levels,
        "correction": one.correction, "error": mean_with_error(one.errors),
    }  # fmt: skip


@torch.no_grad()
def check_repeatable(problem: Problem, seeds: Sequence[int]) -> float:
    """Evaluate the networks twice; return the seconds of one sample's evaluation.

    Raises ValueError if the answers differ.
    """
    noise, labels = problem.draw(problem.batches(seeds)[0])
    drift = problem.exact_drift(labels)
    sigma = torch.tensor(1.0)
    one = drift(noise, sigma).f
    start = time.perf_counter()
    other = drift(noise, sigma).f.cpu()
    spent = time.perf_counter() - start
    difference = ((other - one.cpu()).norm() / one.cpu().norm().clamp_min(1e-30)).item()
    if difference > REPEATABLE:
        raise ValueError(
            f"the denoiser gives two answers for one input (relative difference {difference:.2g}): "
            "switch off what is random in it, such as dropout (model.eval())."
        )
    return spent / len(noise)


def warn_of_spread(model: Any, samples: Sequence[Samples]) -> None:
    """Warn if the converged samples are far wider or narrower than sigma_data."""
    expected = getattr(model, "sigma_data", 0.5)
    scale = torch.cat([to_double(one.ends[1]).flatten() for one in samples]).std().item()
    if not 1 / FAR <= scale / expected <= FAR:
        warnings.warn(
            f"the samples have standard deviation {scale:.3g}, far from sigma_data "
            f"({expected:.3g}): scale the data to {expected:.3g}, or check the noise "
            "levels.",
            stacklevel=4,
        )


def cost_of(problem: Problem, plan: Plan) -> int:
    """Bound the evaluations of the network, one sample each; a guide adds as many."""
    n, few, nfe, k = plan.seeds, min(plan.seeds, SCREENED), plan.nfe, len(plan.directions)
    asked = {"none", *plan.corrections, *(["stepwise"] if "end-to-end" in plan.corrections else [])}
    kinds = [kind for kind in KINDS if kind in asked]
    fits = "stepwise" in kinds
    paths = 3 * n * plan.evaluations + min(n, problem.batch) * (plan.evaluations // 2)
    screening = len(plan.candidates) * few * (len(kinds) + fits)
    finals = FINALISTS * len(kinds) * 2 * n + 3 * n
    moved = 0
    if plan.free_levels:
        trials = 1 + ROUNDS * (nfe - 1 + TRIES)
        moved = (FINALISTS + len(GAMMAS)) * (trials + 4) * n
    together = 0
    if "end-to-end" in plan.corrections:
        each = (nfe if plan.free_levels else 0) + k * nfe // 2 + TRIES + 3
        solvers = {*map(solver_name, plan.candidates)}
        together = min(FINALISTS, len(solvers)) * n * (2 + ROUNDS * each)
    weights = most_runs(n) + n if "weights" in plan.corrections else 0
    return paths + nfe * (screening + finals + moved + together + weights)

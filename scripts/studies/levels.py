"""Noise levels: published schedules, GITS, Xue et al. and the final state's, without corrections.

    python -m scripts.studies levels                          # results/levels.md and .json
    python -m scripts.studies levels --preset mnist --nfe 8

Each solver has one evaluation per step. `published` is its best schedule and GITS the better of two
discounts on the seeds of the choice; `final state` minimises the distance of the final state, as
LD3 (Tong et al. 2025) does by gradients through the network. Errors are mean distances to the
converged solution from the same noise, on seeds that neither fit nor choice has seen.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize

import erk
from erk.calibration.calibrate import VERSION, plan_of, seeds_of
from erk.calibration.contest import Contest, at_levels, draw_samples, measure
from erk.calibration.parts import Parts
from erk.calibration.solver_error import mean_with_error, ratio
from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.job import computation
from erk.method.schedule import make_schedule
from erk.models.presets import find_preset
from scripts.studies.rows import RESULTS, Row, Table, record

PRESETS = ("digits-early", "mnist")
BUDGETS = (5, 6, 8, 10, 15)
SOLVERS: dict[str, dict[str, Any]] = {
    "ipndm": {}, "deis": {}, "dpmpp": {"order": 3}, "unipc": {"order": 3},
}  # fmt: skip
SEEDS = 32
ORDER = 3  # of the multistep rule whose error bound Xue et al. minimise
SEPARATE = 3  # first steps whose terms are bounded one by one


@click.command(context_settings=CONTEXT)
@click.option("--preset", "presets", multiple=True, default=PRESETS,
              help="Preset; may be repeated.")  # fmt: skip
@click.option("--nfe", "budgets", multiple=True, type=int, default=BUDGETS,
              help="Number of evaluations; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "levels",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(presets: Sequence[str], budgets: Sequence[int], out: Path) -> None:
    """Compare noise levels for every preset, solver and budget."""
    torch.set_num_threads(1)
    table = Table(out, text, seeds=SEEDS)
    for name in presets:
        model = erk.load_model(find_preset(name).net)
        for solver in SOLVERS:
            for nfe in budgets:
                row = {"preset": name, "solver": solver, "NFE": nfe}
                click.echo(row, err=True)
                key = ["levels", name, solver, SOLVERS[solver], nfe, SEEDS, model.sha256, VERSION,
                       ORDER, SEPARATE, computation()]  # fmt: skip
                table.add(row, key, partial(compare, model, solver, nfe))
    click.echo(text(table.rows))


def text(rows: Sequence[Row]) -> str:
    """Format the rows."""
    return record(
        "Noise levels: published, GITS, Xue et al. and final state",
        "`python -m scripts.studies levels`: mean distance to the converged solution from the same "
        f"noise, without corrections, on {SEEDS} seeds that were used for neither fit nor choice, "
        "± standard error; ratios are to the best published schedule. Final state: levels that "
        "minimise the distance of the final state, as `erk calibrate` chooses them.",
        rows,
    )


def compare(model: Any, solver: str, nfe: int) -> Row:
    """Return the errors at four kinds of noise levels, and each over that of the published ones."""
    fixed = {"solver": solver, "solver_options": SOLVERS[solver], "afs": False}
    problem, plan = plan_of(model, nfe, fixed, SEEDS, None, (), ("embedded",), 128, SEEDS, None)
    fitted, compared, fresh = (
        draw_samples(problem, seeds, role, plan, Parts(), paths=role == "fit")
        for seeds, role in zip(seeds_of(plan), ("fit", "choose", "report"), strict=True)
    )
    contenders = Contest(problem, plan, Parts(), fitted, compared).run()
    chosen = {
        kind: min((c for c in contenders if c.levels == kind), key=lambda c: c.error).settings
        for kind in ("published", "dynamic", "refined")
    }
    start = chosen["published"]
    chosen["xue"] = at_levels(start, xue(start.steps, start.sigma_min, start.sigma_max))
    errors = {kind: measure(problem._replace(settings=one), fresh) for kind, one in chosen.items()}
    row: Row = {"schedule": start.levels}
    for kind, title in (("published", "published"), ("dynamic", "GITS"), ("xue", "Xue et al."),
                        ("refined", "final state")):  # fmt: skip
        row[title] = tuple(mean_with_error(errors[kind]).values())
        if kind != "published":
            row[f"{title}, ratio"] = tuple(ratio(errors[kind], errors["published"]))
    return row


def weights_of(lambdas: np.ndarray) -> list[np.ndarray]:
    """Return the weights of the denoised images in every step, times e^lambda, N rows [k].

    Step n integrates exp(lambda) times the polynomial through the last k denoised images; k rises
    from 1 to ORDER and falls to 1 at the end.
    """
    nodes, gauss = np.polynomial.legendre.leggauss(12)
    rows, steps = [], len(lambdas) - 1
    for n in range(steps):
        k = min(n + 1, ORDER, steps - n)
        used = lambdas[n - k + 1 : n + 1]
        half = (lambdas[n + 1] - lambdas[n]) / 2
        at = lambdas[n] + half * (nodes + 1)
        basis = [
            np.prod([(at - other) / (one - other) for other in used if other != one], axis=0)
            for one in used
        ]
        rows.append(np.array([half * np.sum(gauss * np.exp(at) * one) for one in basis]))
    return rows


def bound(inner: np.ndarray, ends: tuple[float, float]) -> float:
    """Bound the error of the final state, for errors sigma^2 / alpha (VP) of the denoised images.

    Xue et al. 2024, "Accelerating diffusion sampling with optimized time steps" (arXiv:2402.17376);
    as in the released code, the first and the last step are bounded on their own.
    """
    lambdas = np.array([ends[0], *inner, ends[1]])
    sigma = np.exp(-lambdas)
    error = sigma**2 / np.sqrt(1 + sigma**2)
    shared, alone = np.zeros(len(lambdas)), 0.0
    rows = weights_of(lambdas)
    for n, row in enumerate(rows):
        terms = row * error[n - len(row) + 1 : n + 1]
        if n < SEPARATE or n == len(rows) - 1:
            alone += float(np.linalg.norm(terms))
        else:
            shared[n - len(row) + 1 : n + 1] += terms
    return alone + float(np.abs(shared).sum())


def xue(steps: int, sigma_min: float, sigma_max: float) -> tuple[float, ...]:
    """Minimise `bound` over the levels between two ends.

    It has several minima: of the two starts that the authors recommend, evenly spaced in ln sigma
    (pixels) and in the VP time (latents), the one that leads to the lower bound is taken.
    """
    ends = -float(np.log(sigma_max)), -float(np.log(sigma_min))
    rises = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, -1)
    apart = LinearConstraint(rises, np.array([ends[0], *np.zeros(steps - 2), -ends[1]]), np.inf)
    results = []
    for name in ("logsnr", "time_uniform"):
        begin = -np.log(make_schedule(name, steps, sigma_min, sigma_max).numpy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of steps that change no gradient
            result = minimize(bound, begin[1:-1], (ends,), "trust-constr", constraints=[apart])
        results.append(result)
    best = min(results, key=lambda result: float(result.fun))
    return (sigma_max, *np.exp(-best.x).tolist(), sigma_min)


if __name__ == "__main__":
    main()

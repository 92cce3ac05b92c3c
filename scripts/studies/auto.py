"""`erk="auto"` with every solver: error, FD and sliced W1, on networks and exact mixtures.

    python -m scripts.studies auto                             # results/auto.md and .json
    python -m scripts.studies auto --data toy --solver heun --out trial

Three tables by steps: ratios of mean distances to the converged solution from the same noise,
medians of the ratio of each sample, and changes of FD (digits) or sliced W1 (mixtures) of the same
seeds. A mean may depend on a few samples that end at another mode; a median does not. Standard
errors leave out blocks of seeds. Where all coefficients are 0 the samples are the plain solver's,
bit by bit ("–"). Then the cells where auto is worse than plain: by the mean, and by more than two
standard errors.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.calibration.solver_error import converged, ratio
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.corrections import auto
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS
from metrics.jackknife import paired_difference
from metrics.report import to_markdown
from scripts.studies.data import MIXTURES, NETWORKS, Data, change_of_fd, fd, load, sliced_w1
from scripts.studies.rows import RESULTS, Row, Table, key_of

STEPS = (4, 6, 8, 12, 16, 32, 64)
ACTING = ("heun", "dpm2", "euler")
SCHEDULES = {"deis": "time_uniform", "dpmpp": "logsnr", "unipc": "logsnr"}  # others: edm
EVALUATIONS = {"mixture": 512, "toy": 512}  # on a reference path; some states lie between modes
FIRST, BLOCKS = 70_000, 16  # seeds that no table and no choice of settings uses
DATA = (NETWORKS[0], *MIXTURES, *NETWORKS[1:])


@click.command(context_settings=CONTEXT)
@click.option("--seeds", type=click.IntRange(2 * BLOCKS), default=96, help="Number of samples.")
@click.option("--data", "names", multiple=True, type=click.Choice(DATA), default=DATA,
              help="Data; may be repeated.")  # fmt: skip
@click.option("--solver", "solvers", multiple=True, type=click.Choice([*SOLVERS]),
              default=(*ACTING, *(name for name in SOLVERS if name not in ACTING)),
              help="Solver; may be repeated.")  # fmt: skip
@click.option(
    "--steps",
    "counts",
    multiple=True,
    type=int,
    default=STEPS,
    help="Number of steps; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "auto",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(
    seeds: int, names: Sequence[str], solvers: Sequence[str], counts: Sequence[int], out: Path
) -> None:
    """Measure erk="auto" against the plain solvers."""
    torch.set_num_threads(1)
    table = Table(out, text, **{"first seed": FIRST})
    for name in names:
        for solver in solvers:
            for steps in counts:
                data, settings = load(name), settings_of(load(name), solver, steps)
                row = {"data": name, "solver": solver, "steps": steps, "seeds": seeds}
                key = key_of(data, settings, range(FIRST, FIRST + seeds))
                table.add(row, ["auto with medians", key], partial(compare, data, settings, seeds))
    click.echo(text(table.rows))


def settings_of(data: Data, solver: str, steps: int) -> Settings:
    """Return the plain solver on its usual schedule; the toy in float64."""
    schedule = SCHEDULES.get(solver, "edm")
    dtype = torch.float64 if data.name == "toy" else torch.float32
    return data.settings(solver=solver, steps=steps, schedule=schedule, dtype=dtype)


@torch.inference_mode()
def compare(data: Data, settings: Settings, seeds: int) -> Row:
    """Measure the plain solver and the change by auto; {} where auto has no coefficients."""
    sigmas = settings.sigmas(data.model)
    if not auto(settings.solver_for(sigmas, data.model), sigmas).acts:
        return {}
    noise, labels = data.draw(range(FIRST, FIRST + seeds))
    key = data.name, seeds, settings.levels == "edm"
    if key not in ENDS:
        evaluations = EVALUATIONS.get(data.name, 128)
        ENDS[key] = converged(settings, data.model, noise, labels, data.guide_model, evaluations)
    exact = ENDS[key]
    plain_x0, auto_x0 = (
        solve(s.drift(data.model, labels, data.guide_model), noise, s)
        for s in (settings, replace(settings, erk="auto"))
    )
    plain, corrected = (norm(end - exact).flatten() for end in (plain_x0, auto_x0))
    return {
        "plain error": plain.mean().item(),
        "ratio": tuple(ratio(corrected, plain, BLOCKS)),
        "median ratio": (corrected / plain).median().item(),
        "change": change(data, auto_x0, plain_x0),
    }


ENDS: dict[Any, Tensor] = {}
"""Converged solutions, which solvers and numbers of steps share."""


def change(data: Data, corrected: Tensor, plain: Tensor) -> tuple[float, float]:
    """Compute corrected - plain and its standard error: of FD, or of a mixture's sliced W1."""
    if data.name in MIXTURES:
        (a, left_a), (b, left_b) = (sliced_w1(data, x0, BLOCKS) for x0 in (corrected, plain))
        difference = paired_difference(a, left_a, b, left_b)
        assert difference is not None
    else:
        difference = change_of_fd(fd(data, corrected, BLOCKS), fd(data, plain, BLOCKS))
    return difference.value, difference.error


def worse(row: Row) -> bool:
    """Return whether auto is worse than plain beyond two standard errors, in error or data."""
    if "ratio" not in row:
        return False
    (value, error), (difference, difference_se) = row["ratio"], row["change"]
    return value - 2 * error > 1 or difference > 2 * difference_se


HEAD = """# erk="auto" with every solver

`python -m scripts.studies auto`: every solver with `erk="auto"` against the same without, from the
same noise. Errors are distances to the converged solution; value ± standard error, from blocks of
seeds left out in turn. – and solvers that are not listed: all coefficients are 0, so that the
samples are the plain solver's.
"""
TABLES = (
    ("Ratio of mean errors", "ratio"),
    ("Median over samples of the ratio of errors", "median ratio"),
    ("Change of FD or sliced W1", "change"),
)


def cell(row: Row) -> str:
    """Name a row in a list: data, solver, steps."""
    return f"{row['data']} {row['solver']} {row['steps']}"


def text(rows: Sequence[Row]) -> str:
    """Format the rows as three tables and the lists of what is worse."""
    acting = [row for row in rows if "ratio" in row]
    parts = [HEAD]
    for title, column in TABLES:
        lines: dict[tuple[str, str], Row] = {}
        for row in acting:
            line = lines.setdefault((row["data"], row["solver"]), dict.fromkeys(map(str, STEPS)))
            value = row.get(column)
            line[str(row["steps"])] = tuple(value) if isinstance(value, list) else value
        named = [{"data": d, "solver": s} | line for (d, s), line in lines.items()]
        parts.append(f"{title}, auto against plain, by steps\n\n{to_markdown(named)}")
    larger = [cell(row) for row in acting if row["ratio"][0] > 1]
    bad = [cell(row) for row in acting if worse(row)]
    parts.append(
        f"Of {len(rows)} cells, {len(acting)} have coefficients other than 0.\n\n"
        f"- Mean error larger than the plain solver's: {', '.join(larger) or 'none'}.\n"
        f"- Worse by more than two standard errors: {', '.join(bad) or 'none'}.\n"
    )
    return "\n".join(parts)

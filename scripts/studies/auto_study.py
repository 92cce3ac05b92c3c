"""What `erk="auto"` does to every solver: error, FD and sliced W1, on networks and exact mixtures.

    python -m scripts.studies.auto_study                             # results/auto.md and .json
    python -m scripts.studies.auto_study --data toy --solver heun --out trial

Two tables by steps: ratios of mean distances to the converged solution from the same noise, and
changes of FD (digits) or sliced W1 (mixtures) of the same seeds; standard errors leave out blocks
of seeds. Where all coefficients of the rule are 0 the samples are the plain solver's, bit by bit:
"–", and solvers without others have no row. Then the cells where auto is worse than plain by more
than two standard errors. Cells that this code made are kept.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.calibration.solver_error import converged, ratio
from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import write_file
from erk.method.corrections import auto
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS
from metrics.jackknife import paired_difference
from metrics.table import to_markdown
from scripts.studies.study_data import (
    MIXTURES,
    NETWORKS,
    Data,
    change_of_fd,
    fd,
    key_of,
    load,
    renew,
    sliced,
)

STEPS = (4, 6, 8, 12, 16, 32, 64)
ACTING = ("heun", "dpm2", "euler")
SCHEDULES = {"deis": "time_uniform", "dpmpp": "logsnr", "unipc": "logsnr"}  # others: edm
EVALUATIONS = {"mixture": 512, "toy": 512}  # on a reference path; some states lie between modes
FIRST, BLOCKS = 70_000, 16  # seeds that no table and no choice of settings uses
DATA = (NETWORKS[0], *MIXTURES, *NETWORKS[1:])


@click.command(context_settings=CONTEXT)
@click.option("--seeds", type=click.IntRange(2 * BLOCKS), default=96, help="How many samples.")
@click.option("--data", "names", multiple=True, type=click.Choice(DATA), default=DATA,
              help="May be repeated.")  # fmt: skip
@click.option("--solver", "solvers", multiple=True, type=click.Choice([*SOLVERS]),
              default=(*ACTING, *(name for name in SOLVERS if name not in ACTING)),
              help="May be repeated.")  # fmt: skip
@click.option("--steps", "many", multiple=True, type=int, default=STEPS, help="May be repeated.")
@click.option("--out", default="results/auto", help="Where the table goes, without suffix.")
@clean_exit
def main(
    seeds: int, names: tuple[str, ...], solvers: tuple[str, ...], many: tuple[int, ...], out: str
) -> None:
    """Measure ERK-Guid without knobs against the plain solvers."""
    torch.set_num_threads(1)
    place = Path(out).with_suffix(".json")
    rows = json.loads(place.read_text())["rows"] if place.exists() else []
    for name in names:
        for solver in solvers:
            for steps in many:
                wanted = {"data": name, "solver": solver, "steps": steps, "seeds": seeds}
                data, plan = load(name), plan_of(load(name), solver, steps)
                key = key_of(data, plan, range(FIRST, FIRST + seeds))
                if renew(rows, wanted, key, partial(compare, data, plan, seeds)):
                    save(place, rows)
    click.echo(text(rows))


def plan_of(data: Data, solver: str, steps: int) -> Settings:
    """The plain solver on its usual schedule; the toy in float64."""
    schedule = SCHEDULES.get(solver, "edm")
    dtype = torch.float64 if data.name == "toy" else torch.float32
    return data.plan(solver=solver, steps=steps, schedule=schedule, dtype=dtype)


@torch.inference_mode()
def compare(data: Data, plan: Settings, seeds: int) -> dict[str, Any]:
    """How auto changes the plain solver: {} where it does nothing."""
    sigmas = plan.sigmas(data.model)
    found = auto(plan.solver_for(sigmas, data.model), sigmas)
    if not any(weight for (weight,) in found.weights):
        return {}
    noise, labels = data.start(range(FIRST, FIRST + seeds))
    key = data.name, seeds, plan.levels == "edm"
    if key not in KEPT:
        evaluations = EVALUATIONS.get(data.name, 128)
        KEPT[key] = converged(plan, data.model, noise, labels, data.guide, evaluations)
    exact = KEPT[key]
    ends = [
        solve(one.drift(data.model, labels, data.guide), noise, one)
        for one in (plan, replace(plan, erk="auto"))
    ]
    plain, own = (norm(end - exact).flatten() for end in ends)
    return {
        "plain error": plain.mean().item(),
        "ratio": tuple(ratio(own, plain, BLOCKS)),
        "change": change(data, ends[1], ends[0]),
    }


KEPT: dict[Any, Tensor] = {}
"""Converged solutions, which solvers and numbers of steps share."""


def change(data: Data, own: Tensor, plain: Tensor) -> tuple[float, float]:
    """(auto - plain, standard error): of FD for networks, of sliced W1 for mixtures."""
    if data.name in MIXTURES:
        (a, left_a), (b, left_b) = (sliced(data, x0, BLOCKS) for x0 in (own, plain))
        found = paired_difference(a, left_a, b, left_b)
        assert found is not None
    else:
        found = change_of_fd(fd(data, own, BLOCKS), fd(data, plain, BLOCKS))
    return found.value, found.error


def worse(row: dict[str, Any]) -> bool:
    """Whether auto is worse than plain beyond two standard errors, in error or distribution."""
    if "ratio" not in row:
        return False
    (value, error), (moved, doubt) = row["ratio"], row["change"]
    return value - 2 * error > 1 or moved > 2 * doubt


def text(rows: list[dict[str, Any]]) -> str:
    """All rows as two tables and the list of what is worse."""
    acting = [row for row in rows if "ratio" in row]
    parts = []
    for title, column in (("Ratio of errors", "ratio"), ("Change of FD or sliced W1", "change")):
        lines: dict[tuple[str, str], dict[str, Any]] = {}
        for row in acting:
            line = lines.setdefault((row["data"], row["solver"]), dict.fromkeys(map(str, STEPS)))
            line[str(row["steps"])] = tuple(row[column])
        named = [{"data": d, "solver": s} | line for (d, s), line in lines.items()]
        parts.append(f"{title}, auto against plain, by steps\n\n{to_markdown(named)}")
    bad = [f"{row['data']} {row['solver']} {row['steps']}" for row in acting if worse(row)]
    parts.append(f"Worse by more than two standard errors: {', '.join(bad) or 'none'}")
    parts.append(f"of {len(rows)} cells, {len(acting)} of them with coefficients other than 0.\n")
    return "\n".join(parts)


def save(place: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows and their table."""
    place.parent.mkdir(parents=True, exist_ok=True)
    told = json.dumps({"rows": rows, "first seed": FIRST}, indent=1)
    write_file(place, (told + "\n").encode())
    write_file(place.with_suffix(".md"), text(rows).encode())


if __name__ == "__main__":
    main()

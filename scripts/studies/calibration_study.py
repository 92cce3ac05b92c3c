"""What calibrated corrections do to the error of every solver, with and without guidance.

    python -m scripts.studies.calibration_study          # results/calibration.md and .json
    python -m scripts.studies.calibration_study --data digits --solver heun

Per row: mean distance to the converged solution from the same noise, plain; its ratio with the
automatic and with calibrated coefficients (all directions; also ERK-Guid's own and the embedded
difference alone); FD of both and the paired change. Rows that this code made are kept, so that a
stopped study goes on. Standard errors leave out blocks of seeds.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from erk.calibration.fit import USUAL, ReferenceBatch, fit
from erk.calibration.solver_error import converged, ratio, reference_path
from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import write_file
from erk.method.corrections import auto
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings
from metrics.table import to_markdown
from scripts.studies.study_data import NETWORKS, ORIGIN, Data, change_of_fd, fd, key_of, load, renew

OWN, HELD_OUT, BLOCKS = range(20_000, 20_128), range(1_000, 1_512), 16
FEWER = range(1_000, 1_256)  # of the held-out seeds, for model guidance
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "heun": ("edm", {}, (4, 6, 8, 12, 16)),
    "dpm2": ("polynomial", {}, (3, 4, 5, 8, 10)),
    "deis": ("time_uniform", {}, (5, 6, 8, 10, 15, 20)),
    "ipndm": ("polynomial", {}, (6, 10, 20)),
    "dpmpp 2": ("logsnr", {"order": 2}, (6, 10, 20)),
    "dpmpp 3": ("logsnr", {"order": 3}, (6, 10, 20)),
    "unipc 3": ("logsnr", {"order": 3}, (6, 10, 20)),
    "euler": ("polynomial", {}, (6, 10, 20)),
}
"""solver -> schedule, options, steps, all between 4 and 31 evaluations."""
GUIDED_STEPS = {"heun": (6,), "dpm2": (4,)}
GUIDED_USUAL = (8,)
PARTS = {"ERK-Guid's": ("stiff",), "embedded": ("embedded",), "calibrated": USUAL}
"""column -> directions of the correction"""
IN_PARTS = ("heun", "dpm2", "deis")  # solvers whose correction is looked at in parts as well


@click.command(context_settings=CONTEXT)
@click.option("--data", "names", multiple=True, type=click.Choice(NETWORKS), default=NETWORKS,
              help="May be repeated.")  # fmt: skip
@click.option("--solver", "solvers", multiple=True, type=click.Choice([*CASES]),
              default=tuple(CASES), help="May be repeated.")  # fmt: skip
@click.option("--out", default="results/calibration", help="Where the table goes, without suffix.")
@clean_exit
def main(names: tuple[str, ...], solvers: tuple[str, ...], out: str) -> None:
    """Measure calibrated corrections of all solvers on fresh seeds."""
    torch.set_num_threads(1)
    place = Path(out).with_suffix(".json")
    rows = json.loads(place.read_text())["rows"] if place.exists() else []
    for name in names:
        for solver in solvers:
            schedule, options, usual = CASES[solver]
            guided = GUIDED_STEPS.get(solver, GUIDED_USUAL)
            for steps in usual if name == "digits" else guided:
                wanted = {"data": name, "solver": solver, "steps": steps}
                how = dict(solver=solver.split()[0], schedule=schedule, solver_options=options)
                data = load(name)
                plan = data.plan(steps=steps, **how)
                key = key_of(data, plan, OWN, seeds_of(data))
                if renew(rows, wanted, key, partial(row_of, data, plan)):
                    click.echo(wanted, err=True)
                    save(place, rows)
    click.echo(to_markdown(table(rows)))


@torch.inference_mode()
def row_of(data: Data, plan: Settings) -> dict[str, Any]:
    """The numbers of one solver, schedule and number of steps; pairs are (value, error)."""
    noise, labels = data.start(seeds_of(data))
    exact = end_of(data, plan)
    drift = plan.drift(data.model, labels, data.guide)
    x0 = solve(drift, noise, plan)
    plain, judged = norm(x0 - exact).flatten(), fd(data, x0, BLOCKS)
    row: dict[str, Any] = {
        "nfe": int(drift.nfe),
        "plain error": (plain.mean().item(), (plain.std() / len(plain) ** 0.5).item()),
    }
    sigmas, calibrating = plan.sigmas(data.model), batch_of(data, plan)
    rule = auto(plan.solver_for(sigmas, data.model), sigmas)
    for name, directions in ({"auto": ()} | PARTS).items():
        row[name] = None
        if name == "auto":
            own = rule if any(any(row) for row in rule.weights) else None
        elif name == "calibrated" or plan.solver in IN_PARTS:
            own = fit(data.problem(plan), [calibrating], directions).correction
        else:
            own = None
        if own is not None:
            x0 = solve(plan.drift(data.model, labels, data.guide), noise, replace(plan, erk=own))
            row[name] = tuple(ratio(norm(x0 - exact).flatten(), plain, BLOCKS))
    own_fd = fd(data, x0, BLOCKS)
    change = change_of_fd(own_fd, judged)
    return row | {
        "FD plain": judged.values["fd"],
        "FD calibrated": own_fd.values["fd"],
        "change of FD": (change.value, change.error),
    }


KEPT: dict[Any, Tensor] = {}
"""Converged ends by data and noise levels' ends: every solver and number of steps shares them."""


def seeds_of(data: Data) -> range:
    """The seeds that the error is measured on."""
    return HELD_OUT if data.guide is None else FEWER


def end_of(data: Data, plan: Settings) -> Tensor:
    """The converged solutions of the held-out seeds, [B, ...]."""
    key = data.name, plan.levels == "edm"
    if key not in KEPT:
        KEPT[key] = converged(plan, data.model, *data.start(seeds_of(data)), data.guide)
    return KEPT[key]


def batch_of(data: Data, plan: Settings) -> ReferenceBatch:
    """The calibration seeds with their reference path at the noise levels of `plan`.

    The paths at all noise levels of all cases are solved at once, and kept.
    """
    noise, labels = data.start(OWN)
    plans = [
        data.plan(steps=n, schedule=schedule) for schedule, _, many in CASES.values() for n in many
    ]
    levels = torch.cat([p.sigmas() for p in plans]).unique().flip(0)
    key = data.name, "paths"
    if key not in KEPT:
        drift = data.problem(plan).exact_drift(labels)
        KEPT[key] = reference_path(drift, noise, levels)
    places = [(levels - sigma).abs().argmin().item() for sigma in plan.sigmas(data.model)]
    return ReferenceBatch(noise, labels, [KEPT[key][place] for place in places])


def save(place: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows and their table."""
    place.parent.mkdir(parents=True, exist_ok=True)
    facts = {"seeds": f"{HELD_OUT[0]}-{HELD_OUT[-1]}", "calibration": f"{OWN[0]}-{OWN[-1]}"}
    told = {"rows": rows, **facts}
    write_file(place, (json.dumps(told, indent=1) + "\n").encode())
    write_file(place.with_suffix(".md"), to_markdown(table(rows)).encode())


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for reading: pairs as tuples, rounded by the table itself."""
    return [
        {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k not in ORIGIN}
        for row in rows
    ]


if __name__ == "__main__":
    main()

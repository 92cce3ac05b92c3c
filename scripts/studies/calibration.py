"""Calibrated corrections of every solver, with and without model guidance.

    python -m scripts.studies calibration          # results/calibration.md and .json
    python -m scripts.studies calibration --data digits --solver heun

Per row: mean distance to the converged solution from the same noise, plain; its ratio with auto
and with calibrated coefficients (all directions; also ERK-Guid's direction and the embedded
difference alone); FD of plain and calibrated samples and their paired difference. Standard errors
leave out blocks of seeds.
"""

from collections.abc import Sequence
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
from erk.method.corrections import Correction, auto
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings
from scripts.studies.data import NETWORKS, Data, change_of_fd, fd, load
from scripts.studies.rows import RESULTS, Row, Table, key_of, record

SEEDS, HELD_OUT, BLOCKS = range(20_000, 20_128), range(1_000, 1_512), 16
GUIDED_HELD_OUT = range(1_000, 1_256)
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
IN_PARTS = ("heun", "dpm2", "deis")  # solvers with all columns; the others have `calibrated` only


@click.command(context_settings=CONTEXT)
@click.option("--data", "names", multiple=True, type=click.Choice(NETWORKS), default=NETWORKS,
              help="Data; may be repeated.")  # fmt: skip
@click.option("--solver", "solvers", multiple=True, type=click.Choice([*CASES]),
              default=tuple(CASES), help="Solver; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "calibration",
              help="Path of the table, without suffix.")  # fmt: skip
@clean_exit
def main(names: Sequence[str], solvers: Sequence[str], out: Path) -> None:
    """Measure calibrated corrections of all solvers on other seeds than they are fitted to."""
    torch.set_num_threads(1)
    table = Table(out, text, seeds=_ends(HELD_OUT), calibration=_ends(SEEDS))
    for name in names:
        data = load(name)
        for solver in solvers:
            schedule, options, counts = CASES[solver]
            guided = GUIDED_STEPS.get(solver, GUIDED_USUAL)
            for steps in counts if name == "digits" else guided:
                settings = data.settings(
                    solver=solver.split()[0], steps=steps, schedule=schedule, solver_options=options
                )
                row = {"data": name, "solver": solver, "steps": steps}
                click.echo(row, err=True)
                key = key_of(data, settings, SEEDS, seeds_of(data))
                table.add(row, ["calibration", key], partial(measure, data, settings))
    click.echo(text(table.rows))


def text(rows: Sequence[Row]) -> str:
    """Format the rows."""
    return record(
        "Calibrated corrections of every solver",
        f"`python -m scripts.studies calibration`: corrections fitted on seeds {_ends(SEEDS)} and "
        f"measured on seeds {_ends(HELD_OUT)}, with model guidance on {_ends(GUIDED_HELD_OUT)}. "
        "Plain error: mean distance to the converged solution from the same noise. The columns "
        'from auto to calibrated are errors relative to it: with `erk="auto"`, and fitted with '
        "ERK-Guid's direction alone, with the embedded difference alone and with all directions. "
        "Value ± standard error; –: all coefficients are 0, or not measured.",
        rows,
    )


def _ends(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


@torch.inference_mode()
def measure(data: Data, settings: Settings) -> Row:
    """Measure one solver, schedule and number of steps; pairs are (value, standard error)."""
    noise, labels = data.draw(seeds_of(data))
    exact = ends_of(data, settings)
    drift = settings.drift(data.model, labels, data.guide_model)
    x0 = solve(drift, noise, settings)
    plain, plain_fd = norm(x0 - exact).flatten(), fd(data, x0, BLOCKS)
    row: Row = {
        "nfe": int(drift.nfe),
        "plain error": (plain.mean().item(), (plain.std() / len(plain) ** 0.5).item()),
    }
    for name, correction in corrections_of(data, settings).items():
        row[name] = None
        if correction is not None:
            corrected = replace(settings, erk=correction)
            drift = corrected.drift(data.model, labels, data.guide_model)
            x0 = solve(drift, noise, corrected)
            row[name] = tuple(ratio(norm(x0 - exact).flatten(), plain, BLOCKS))
    calibrated_fd = fd(data, x0, BLOCKS)  # of the last one
    change = change_of_fd(calibrated_fd, plain_fd)
    return row | {
        "FD plain": plain_fd.values["fd"],
        "FD calibrated": calibrated_fd.values["fd"],
        "change of FD": (change.value, change.error),
    }


def corrections_of(data: Data, settings: Settings) -> dict[str, Correction | None]:
    """Return the correction of every column, `calibrated` last; None where it is left out."""
    sigmas, batch = settings.sigmas(data.model), batch_of(data, settings)
    rule = auto(settings.solver_for(sigmas, data.model), sigmas)
    corrections: dict[str, Correction | None] = {"auto": rule if rule.acts else None}
    for name, directions in PARTS.items():
        wanted = name == "calibrated" or settings.solver in IN_PARTS
        problem = data.problem(settings)
        corrections[name] = fit(problem, [batch], directions).correction if wanted else None
    return corrections


SOLUTIONS: dict[Any, Tensor] = {}
"""Converged solutions and reference paths, which solvers and numbers of steps share."""


def seeds_of(data: Data) -> range:
    """Return the seeds that the error is measured on."""
    return HELD_OUT if data.guide_model is None else GUIDED_HELD_OUT


def ends_of(data: Data, settings: Settings) -> Tensor:
    """Return the converged solutions of the held-out seeds, [B, ...]."""
    key = data.name, settings.levels == "edm"
    if key not in SOLUTIONS:
        noise, labels = data.draw(seeds_of(data))
        SOLUTIONS[key] = converged(settings, data.model, noise, labels, data.guide_model)
    return SOLUTIONS[key]


def batch_of(data: Data, settings: Settings) -> ReferenceBatch:
    """Return the calibration seeds with their reference path at the noise levels of `settings`.

    The paths at the noise levels of all cases are solved at once.
    """
    noise, labels = data.draw(SEEDS)
    cases = [
        data.settings(steps=n, schedule=schedule)
        for schedule, _, counts in CASES.values()
        for n in counts
    ]
    levels = torch.cat([case.sigmas() for case in cases]).unique().flip(0)
    key = data.name, "paths"
    if key not in SOLUTIONS:
        drift = data.problem(settings).exact_drift(labels)
        SOLUTIONS[key] = reference_path(drift, noise, levels)
    rows = [int((levels - sigma).abs().argmin()) for sigma in settings.sigmas(data.model)]
    return ReferenceBatch(noise, labels, [SOLUTIONS[key][row] for row in rows])

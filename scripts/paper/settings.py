"""Tables 5 and 9: weights read from a config, and pairs measured on the solvers."""

from pathlib import Path
from typing import Any

import click
import torch

from erk.calibration.problem import count_nfe, gaussian
from erk.generation.options import networks_of, settings_of
from erk.method.point import Step
from erk.method.sampler import loop
from erk.method.settings import Settings
from erk.runtime.provenance import provenance
from scripts.paper.config import (
    PAPER,
    AnyConfig,
    Request,
    Row,
    SettingsTable,
    load_config,
)
from scripts.paper.page import table_of
from scripts.paper.scales import at_scale, options_of
from scripts.paper.tables import Content, write_content

PROBED = 3  # index of the step that is examined: multistep solvers have their full order by then


def run(config: SettingsTable, request: Request) -> list[Path]:
    """Write Table 5 or 9 and return the paths."""
    if request.dry_run:
        click.echo(f"{config.name}: {config.title}; needs no network and no time")
        return []
    name = config.options.weights_of
    at_paper = request._replace(scale=PAPER)
    content = pairs(config) if name is None else weights(at_scale(load_config(name), at_paper))
    return write_content(config, request, "", content, provenance())


def weights(table: AnyConfig) -> Content:
    """Return w_stiff of another table's rows, solver by NFE, one table per network (Table 5)."""
    data: list[dict[str, Any]] = []
    for row in table.rows:
        options = options_of(row.settings)
        _, _, guidance = networks_of(options)
        nfe, _ = count_nfe(settings_of(options, guidance))
        if options["w_stiff"] > 0:
            names = ("preset", "solver", "w_stiff", "w_con")
            data.append({name: options[name] for name in names} | {"nfe": nfe})
    tables = []
    for preset in dict.fromkeys(one["preset"] for one in data):
        rows: dict[str, dict[str, Any]] = {}
        for one in data:
            if one["preset"] == preset:
                line = rows.setdefault(one["solver"], {"solver": one["solver"]})
                line[f"NFE {one['nfe']:g}"] = one["w_stiff"]
        tables.append(table_of(preset, list(rows.values())))
    return Content(tables, data, [])


def pairs(config: SettingsTable) -> Content:
    """Return what each solver reports, beside the published values (Table 9)."""
    data: list[dict[str, Any]] = [
        {"name": row.name, "ours": pair_of(row), "published": row.published} for row in config.rows
    ]
    rows = [
        {"solver": one["name"]}
        | one["ours"]
        | {f"published {name}": value for name, value in one["published"].items()}
        for one in data
    ]
    return Content([table_of("Measured by running each solver.", rows)], data, [])


def pair_of(row: Row) -> dict[str, Any]:
    """Run the solver on Gaussian data and describe its pair in the notation of the paper.

    The pair of states, the step size, the sign, and the first step that has a pair.
    """
    options: dict[str, Any] = {"steps": 8} | row.settings
    settings = Settings(**options)
    sigmas = settings.sigmas()
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    steps = [step for _, step in loop(settings.drift(gaussian), x, sigmas, settings)]
    step = steps[PROBED]
    assert step.twin is not None and step.h is not None
    sizes = {"σ_i − σ_{i+1}": sigmas[PROBED] - sigmas[PROBED + 1],
             "σ_{i−1} − σ_i": sigmas[PROBED - 1] - sigmas[PROBED]}  # fmt: skip
    return {
        "pair": f"x_i, {_twin(steps, sigmas)}",
        "h": next(name for name, size in sizes.items() if torch.isclose(size, step.h.abs())),
        "beta": "{0, 1}" if step.h > 0 else "{0, −1}",
        "from step": 1 + next(i for i, one in enumerate(steps) if one.twin is not None),
    }


def _twin(steps: list[Step], sigmas: torch.Tensor) -> str:
    """Return the paper's symbol of the second point of a pair."""
    twin, before = steps[PROBED].twin, steps[PROBED - 1].start
    assert twin is not None
    here, after = sigmas[PROBED], sigmas[PROBED + 1]
    solution = before.x + (here - before.sigma) * before.f
    if twin.sigma == here and torch.allclose(twin.x, solution):
        return "x_i^Euler"
    if twin.sigma == before.sigma and torch.equal(twin.x, before.x):
        return "x_{i−1}"
    if after < twin.sigma < here:
        return "x_{i+δ}"
    raise ValueError(
        f"the pair of this solver, at sigma {twin.sigma:g}, has no symbol in the paper"
    )

"""Tables of settings: nothing is sampled, all is read from the configs or asked of the solvers."""

from pathlib import Path
from typing import Any

import click
import torch

from erk.calibration.problem import count_nfe, gaussian
from erk.generation.options import DEFAULTS, networks_of, settings_of
from erk.method.point import Step
from erk.method.sampler import loop
from erk.method.settings import Settings
from erk.runtime.provenance import provenance
from scripts.paper.config import Config, Request, Row, load_config, page_name, settings_of_row
from scripts.paper.render import Block, Page, heading, write_page

PROBED = 3  # the step that is looked at: every multistep solver has its full order by then


def run(config: Config, request: Request) -> list[Path]:
    """Write the table; the files written."""
    made = _weights if "weights_of" in config.options else _pairs
    if request.dry_run:
        click.echo(f"{config.name}: {config.title}; no network is needed and no time")
        return []
    blocks, data = made(config, request)
    page = Page(
        page_name(config, request), heading(config, None), config.kind, None, blocks, data,
        [config.paper, *config.notes], [provenance()],
    )  # fmt: skip
    return write_page(request.results, page)


def _weights(config: Config, request: Request) -> tuple[list[Block], list[dict[str, Any]]]:
    """w_stiff of another table's rows, solver by NFE, a block per network (Table 5)."""
    data = []
    for row in load_config(config.options["weights_of"]).rows:
        options = DEFAULTS | settings_of_row(config, row, "paper", request.as_printed)
        _, _, guidance = networks_of(options)
        nfe, _ = count_nfe(settings_of(options, guidance))
        if options["w_stiff"] > 0:
            names = ("preset", "solver", "w_stiff", "w_con")
            data.append({name: options[name] for name in names} | {"nfe": nfe})
    blocks = []
    for preset in dict.fromkeys(one["preset"] for one in data):
        lines: dict[str, dict[str, Any]] = {}
        for one in data:
            if one["preset"] == preset:
                line = lines.setdefault(one["solver"], {"solver": one["solver"]})
                line[f"NFE {one['nfe']:g}"] = one["w_stiff"]
        blocks.append(Block(preset, list(next(iter(lines.values()))), list(lines.values())))
    return blocks, data


def _pairs(config: Config, request: Request) -> tuple[list[Block], list[dict[str, Any]]]:
    """What each solver reports, beside what the paper prints (Table 9)."""
    data: list[dict[str, Any]] = [
        {"name": row.name, "ours": pair_of(row), "published": row.published} for row in config.rows
    ]
    rows = [
        {"solver": one["name"]}
        | one["ours"]
        | {f"published {name}": value for name, value in one["published"].items()}
        for one in data
    ]
    columns = [*config.columns, "from step", *(f"published {name}" for name in config.columns)]
    return [Block("Found by running each solver.", ["solver", *columns], rows)], data


def pair_of(row: Row) -> dict[str, Any]:
    """Pair of states, step size and sign of ERK-Guid in the paper's words, and the first step that
    has a pair, found by running the solver on Gaussian data."""
    settings = Settings(**{"steps": 8} | row.settings)
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
    """The paper's name of the second point of a pair."""
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
    raise ValueError(f"the pair of this solver, at sigma {twin.sigma:g}, has no name here")

"""The pair of each solver (Table 9): its sign of h, on Gaussian data and on digits.

python -m scripts.studies local-errors    # prints the first table of docs/theory.md
python -m scripts.studies signs           # prints the second one, 2 minutes
"""

import itertools
from typing import Any

import click
import torch
from torch import Tensor

import erk
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.guidance import erk_push
from erk.method.point import Point, Step
from erk.method.settings import Settings
from erk.method.solvers import make_solver
from metrics.report import to_markdown

LEVELS = (8, 4, 2, 1.4, 1, 0.7, 0.5, 0.3, 0.15)  # sigma in units of the data's deviation
RATIO = 1.25  # of neighbouring noise levels
LONG = {"lower_order_final": False}
LOCAL_CASES: list[tuple[str, dict[str, Any]]] = [
    ("euler", {}),
    ("heun", {}),
    ("dpm2", {}),
    ("dpm2", {"predict_x0": True}),
    ("ipndm", {}),
    ("ipndm_v", {}),
    *[("deis", {"order": n}) for n in (2, 3, 4)],
    *[("dpmpp", {"order": n, **LONG}) for n in (2, 3)],
    *[("unipc", {"order": n, **LONG}) for n in (1, 2, 3)],
]
GLOBAL_CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("euler", "polynomial", {}),
    ("ipndm", "polynomial", {}),
    ("ipndm_v", "polynomial", {}),
    ("deis", "time_uniform", {}),
    ("dpmpp", "logsnr", {"order": 2}),
    ("dpmpp", "logsnr", {"order": 3}),
    ("unipc", "logsnr", {"order": 3}),
    ("heun", "polynomial", {}),
    ("dpm2", "polynomial", {}),
    ("dpm2", "polynomial", {"predict_x0": True}),
]
WEIGHTS, W_CON = (0.25, 0.5, 1.0, 2.0, 3.0), 0.3
STEPS, FINE = (6, 10), 192
FIRST = 10_000  # seed


def label(name: str, options: dict[str, Any]) -> str:
    """Name a solver with its order; ``dpm2 ++`` with data prediction."""
    kind = options.get("order", "++" if options.get("predict_x0") else "")
    return f"{name} {kind}".strip()


@click.command(context_settings=CONTEXT)
@clean_exit
def local_errors() -> None:
    """Print, per solver and noise level, the w_stiff that would remove the local error."""
    rows = []
    for name, options in LOCAL_CASES:
        row = {"solver": label(name, options)}
        for level in LEVELS:
            weight = removing_weight(name, options, level)
            row[f"{level:g}"] = f"{weight:.2f}" if weight > 0 else "wrong sign"
        rows.append(row)
    click.echo(to_markdown(rows), nl=False)


def removing_weight(name: str, options: dict[str, Any], level: float) -> float:
    """Compute the w_stiff that removes the local error at sigma = level; negative: wrong sign.

    The solver starts every step on the exact solution, so its error is local.
    """
    nodes = level * RATIO ** torch.arange(6, -3, -1, dtype=torch.float64)
    solver, memory = make_solver(name, options, nodes), None
    for sigma, sigma_next in itertools.pairwise(nodes[:-1]):
        step = solver(gaussian_drift, exact(sigma), sigma, sigma_next, memory)
        memory = step.memory
    error = exact(sigma_next) - step.x
    correction = erk_push(step, 1.0, 0.0)
    assert correction is not None
    ratio = (-error / correction.push).item()
    return abs(ratio) ** 0.5 * (1 if ratio > 0 else -1)


def gaussian_drift(x: Tensor, sigma: Tensor) -> Point:
    """Evaluate the exact drift for data of deviation 1."""
    return Point(x, sigma / (1 + sigma**2) * x, sigma)


def exact(sigma: Tensor) -> Tensor:
    """Return a solution of that ODE, [1, 1]."""
    return torch.sqrt(1 + sigma**2).reshape(1, 1)


@click.command(context_settings=CONTEXT)
@click.option("--seeds", default=64, help="Samples per cell.")
@clean_exit
def signs(seeds: int) -> None:
    """Print distances to the converged solution relative to plain, with both signs of h."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(FIRST, FIRST + seeds), model)
    nodes = Settings(steps=FINE, schedule="edm").sigmas()[:-1].double().tolist()
    converged = erk.sample(model, noise, labels, schedule=nodes)

    def error(**settings: Any) -> float:
        x0 = erk.sample(model, noise, labels, w_con=W_CON, **settings)
        return (x0 - converged).flatten(1).norm(dim=1).mean().item()

    rows = []
    for name, schedule, options in GLOBAL_CASES:
        for steps in STEPS:
            solver = dict(solver=name, schedule=schedule, steps=steps, solver_options=options)
            plain = error(w_stiff=0.0, **solver)
            ours = {w: error(w_stiff=w, **solver) / plain for w in WEIGHTS}
            other = {w: error(w_stiff=w, twin=flipped, **solver) / plain for w in WEIGHTS}
            best = min(ours, key=ours.__getitem__)
            rows.append({
                "solver": label(name, options),
                "steps": steps,
                "plain error": f"{plain:.3f}",
                "best ratio": f"{ours[best]:.3f} (w_stiff {best})",
                "other sign": f"{min(other.values()):.3f}",
            })  # fmt: skip
    click.echo(to_markdown(rows), nl=False)


def flipped(step: Step, previous: Step | None) -> tuple[Point | None, Tensor | None]:
    """Return the solver's pair with the other sign of h."""
    return step.twin, None if step.h is None else -step.h

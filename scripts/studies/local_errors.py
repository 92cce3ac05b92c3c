"""Which sign of h, and which w_stiff, would remove a solver's local error on Gaussian data.

python -m scripts.studies.local_errors        # prints the table of docs/theory.md
"""

import itertools
from typing import Any

import click
import torch
from torch import Tensor

from erk.method.guidance import erk_push
from erk.method.point import Point
from erk.method.solvers import make_solver
from metrics.table import to_markdown

PLACES = (8, 4, 2, 1.4, 1, 0.7, 0.5, 0.3, 0.15)  # sigma in units of the data's deviation
RATIO = 1.25  # of neighbouring noise levels
LONG = {"lower_order_final": False}
CASES: list[tuple[str, dict[str, Any]]] = [
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


def drift(x: Tensor, sigma: Tensor) -> Point:
    """The exact drift for data of deviation 1."""
    return Point(x, sigma / (1 + sigma**2) * x, sigma)


def exact(sigma: Tensor) -> Tensor:
    """A solution of that ODE, [1, 1]."""
    return torch.sqrt(1 + sigma**2).reshape(1, 1)


def label(name: str, options: dict[str, Any]) -> str:
    """``deis 3``: the solver and its order; ``dpm2 ++`` for data prediction."""
    kind = options.get("order", "++" if options.get("predict_x0") else "")
    return f"{name} {kind}".strip()


def removing_weight(name: str, options: dict[str, Any], place: float) -> float:
    """w_stiff that removes the local error of the step from sigma = place; negative: wrong sign.

    The solver starts every step on the exact solution, so its error is local.
    """
    nodes = place * RATIO ** torch.arange(6, -3, -1, dtype=torch.float64)
    solver, memory = make_solver(name, options, nodes), None
    for sigma, sigma_next in itertools.pairwise(nodes[:-1]):
        step = solver(drift, exact(sigma), sigma, sigma_next, memory)
        memory = step.memory
    error = exact(sigma_next) - step.x
    made = erk_push(step, 1.0, 0.0)
    assert made is not None
    ratio = (-error / made.push).item()
    return abs(ratio) ** 0.5 * (1 if ratio > 0 else -1)


@click.command()
def main() -> None:
    """Print, per solver and noise level, the w_stiff that would remove the local error."""
    rows = []
    for name, options in CASES:
        row = {"solver": label(name, options)}
        for place in PLACES:
            weight = removing_weight(name, options, place)
            row[f"{place:g}"] = f"{weight:.2f}" if weight > 0 else "wrong sign"
        rows.append(row)
    click.echo(to_markdown(rows), nl=False)


if __name__ == "__main__":
    main()

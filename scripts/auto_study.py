"""What `erk="auto"` does to the error of every solver, on the digits networks and the exact toy.

    python scripts/auto_study.py [--seeds 128] [--solver heun ...]

Prints distances to the converged solution from the same noise, with and without, their ratio and
its standard error over seeds (paired).
"""

import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import erk
from erk.jobs.cli import CONTEXT, clean_exit
from erk.models.presets import find_preset
from erk.point import norm
from erk.sampler import Settings
from erk.solvers import SOLVERS
from erk.study import toy, toy_results
from metrics.table import to_text

FIRST = 70000  # seed; no table and no choice of settings uses these
STEPS = (4, 6, 8, 12, 16, 32, 64)
FINE = {"digits": 192, "toy": 400}  # steps of the converged solution, by Heun
GUIDED = ("digits", "digits-autog", "digits-cfg")
TOY_SIGMA_MAX = 5.0


@click.command(context_settings=CONTEXT)
@click.option("--seeds", type=click.IntRange(8), default=128, help="How many samples.")
@click.option("--solver", "solvers", multiple=True, type=click.Choice([*SOLVERS]),
              default=("heun", "dpm2", "euler"), help="May be repeated.  "
              "[default: those that auto acts on]")  # fmt: skip
@clean_exit
def main(seeds: int, solvers: tuple[str, ...]) -> None:
    """Print the ratio of errors with and without automatic coefficients."""
    torch.set_num_threads(1)
    rows = []
    for data in (*GUIDED, "toy"):
        end = on_toy(seeds) if data == "toy" else on_network(data, seeds)
        exact = end(steps=FINE["toy" if data == "toy" else "digits"])
        for solver in solvers:
            row: dict[str, Any] = {"data": data, "solver": solver}
            for steps in STEPS:
                plain = norm(end(solver=solver, steps=steps) - exact).flatten()
                own = norm(end(solver=solver, steps=steps, erk="auto") - exact).flatten()
                row[f"{steps} steps"] = ratio(own, plain)
            rows.append(row)
            click.echo(f"{data}, {solver}", err=True)
    click.echo(to_text(rows))


def ratio(own: Tensor, plain: Tensor) -> tuple[float, float]:
    """Mean own / mean plain, and its standard error from the pairs."""
    value = (own.mean() / plain.mean()).item()
    error = (own - value * plain).std() / len(own) ** 0.5 / plain.mean()
    return value, error.item()


def on_network(name: str, seeds: int) -> Any:
    """A function of sampling settings: where a preset's samples end."""
    preset = find_preset(name)
    model = erk.load_model(preset.net)
    guide = None if preset.gnet is None else erk.load_model(preset.gnet)
    noise, labels = erk.noise_and_labels(range(FIRST, FIRST + seeds), model)
    more = {} if guide is None else {"guide_model": guide, "guidance": preset.guidance}
    return lambda **how: erk.sample(model, noise, labels, **more, **how)


def on_toy(seeds: int) -> Any:
    """The same on the exact toy, down to its lowest positive noise level."""
    mixture = toy.tree("A")
    start = toy_results.noisy_states(mixture, seeds, TOY_SIGMA_MAX, FIRST)
    model = toy.denoiser(mixture)

    def end(steps: int, **how: Any) -> Tensor:
        plan = Settings(steps=steps, sigma_max=TOY_SIGMA_MAX)
        levels = plan.sigmas()[:-1].tolist()
        settings = {"schedule": levels, "dtype": torch.float64} | how
        return erk.sample(model, start / TOY_SIGMA_MAX, **settings)

    return end


if __name__ == "__main__":
    main()

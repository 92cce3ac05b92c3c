"""Does the pair of each solver lower its global error on the digits network, and with which sign?

python -m scripts.studies.pair_study          # prints the second table of docs/theory.md, 2 minutes
"""

from typing import Any

import click
from torch import Tensor

import erk
from erk.method.point import Point, Step
from erk.method.settings import Settings
from metrics.table import to_markdown
from scripts.studies.local_errors import label

CASES: list[tuple[str, str, dict[str, Any]]] = [
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
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 3.0)
W_CON = 0.3
STEPS = (6, 10)
FINE = 192


def flipped(step: Step, before: Step | None) -> tuple[Point | None, Tensor | None]:
    """The solver's own pair with the other sign."""
    return step.twin, None if step.h is None else -step.h


@click.command()
@click.option("--seeds", default=64, show_default=True, help="Samples per cell.")
def main(seeds: int) -> None:
    """Print mean distances to the converged solution, relative to the plain solver's."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(10_000, 10_000 + seeds), model)
    nodes = Settings(steps=FINE).sigmas()[:-1].double().tolist()
    converged = erk.sample(model, noise, labels, schedule=nodes)

    def error(**how: Any) -> float:
        x0 = erk.sample(model, noise, labels, w_con=W_CON, **how)
        return (x0 - converged).flatten(1).norm(dim=1).mean().item()

    rows = []
    for name, schedule, options in CASES:
        for steps in STEPS:
            how = dict(solver=name, schedule=schedule, steps=steps, solver_options=options)
            plain = error(**how)
            own = {w: error(w_stiff=w, **how) / plain for w in WEIGHTS}
            other = {w: error(w_stiff=w, twin=flipped, **how) / plain for w in WEIGHTS}
            rows.append({
                "solver": label(name, options),
                "steps": steps,
                "plain error": f"{plain:.3f}",
                "best ratio": f"{min(own.values()):.3f} (w_stiff {min(own, key=own.__getitem__)})",
                "other sign": f"{min(other.values()):.3f}",
            })  # fmt: skip
    click.echo(to_markdown(rows), nl=False)


if __name__ == "__main__":
    main()

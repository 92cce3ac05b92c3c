"""What was tried on top of calibration: does it win on held-out seeds?

    python -m scripts.studies.calibration_ideas     # prints the tables of docs/beyond.md

Digits, Heun on the EDM schedule: ratios of the error to the plain
solver's on fresh seeds; standard errors leave out blocks of seeds.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch

from erk.calibration.fit import USUAL, Fit, ReferenceBatch, fit
from erk.calibration.solver_error import converged, errors, ratio, reference_path
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.corrections import Correction, auto
from erk.method.settings import Settings
from metrics.table import to_markdown
from scripts.studies.study_data import Data, load

OWN, HELD_OUT = range(20_000, 20_064), range(1_000, 1_128)
Row = dict[str, Any]


class Bench:
    """One data set, its converged ends and fits, solved once."""

    def __init__(self, name: str) -> None:
        self.data: Data = load(name)
        self.noise, self.labels = self.data.start(HELD_OUT)
        self.ends = converged(
            self.data.plan(), self.data.model, self.noise, self.labels, self.data.guide
        )

    def plan(self, steps: int) -> Settings:
        """Heun on the EDM schedule."""
        return self.data.plan(steps=steps)

    def fit(self, steps: int, directions: tuple[str, ...] = USUAL, seeds: int = len(OWN)) -> Fit:
        """A calibration of Heun on the first `seeds` of OWN."""
        noise, labels = self.data.start(OWN[:seeds])
        plan = self.plan(steps)
        problem = self.data.problem(plan)
        path = reference_path(problem.exact_drift(labels), noise, problem.sigmas)
        return fit(problem, [ReferenceBatch(noise, labels, path)], directions)

    def ratio(self, steps: int, correction: Correction) -> tuple[float, float]:
        """The error with a correction relative to without."""
        plan = self.plan(steps)
        own, plain = (
            errors(p, self.data.model, self.noise, self.labels, self.ends, self.data.guide)
            for p in (replace(plan, erk=correction), plan)
        )
        return tuple(ratio(own, plain))


def changed(made: Correction, change: Callable[[torch.Tensor], torch.Tensor]) -> Correction:
    """The correction with its weights [N, K] changed."""
    weights = change(torch.tensor(made.weights, dtype=torch.float64))
    return made._replace(weights=tuple(tuple(row) for row in weights.tolist()))


def smoothed(weights: torch.Tensor) -> torch.Tensor:
    """Each step's weights averaged with their neighbours', 1/4, 1/2, 1/4."""
    ends = torch.cat([weights[:1], weights, weights[-1:]])
    return (ends[:-2] + 2 * ends[1:-1] + ends[2:]) / 4


def resampled(made: Correction, levels: torch.Tensor) -> Correction:
    """Weights at other levels: weight / (1 - sigma_{i+1}/sigma_i) interpolated in ln sigma."""
    old = torch.tensor(made.sigmas, dtype=torch.float64)
    new = levels[levels > 0].double()
    scaled = torch.tensor(made.weights, dtype=torch.float64) / (1 - old[1:] / old[:-1])[:, None]
    x, y = new[:-1].log(), old[:-1].log().flip(0).contiguous()
    place = torch.searchsorted(y, x).clamp(1, len(y) - 1)
    t = ((x - y[place - 1]) / (y[place] - y[place - 1])).clamp(0, 1)[:, None]
    rows = scaled.flip(0)
    weights = ((1 - t) * rows[place - 1] + t * rows[place]) * (1 - new[1:] / new[:-1])[:, None]
    return Correction(tuple(new.tolist()), made.directions, tuple(map(tuple, weights.tolist())))


def rule(bench: Bench, steps: int, directions: tuple[str, ...]) -> torch.Tensor:
    """The weights of `auto`, [N, K]."""
    plan = bench.plan(steps)
    sigmas = plan.sigmas(bench.data.model)
    found = auto(plan.solver_for(sigmas, bench.data.model), sigmas)
    column = torch.tensor(found.weights, dtype=torch.float64)
    return column * torch.tensor([float(name == "embedded") for name in directions])


@torch.inference_mode()
def tables() -> dict[str, list[Row]]:
    """Title -> rows."""
    bench, cfg = Bench("digits"), Bench("digits-cfg")
    fits = {n: bench.fit(n) for n in (6, 8, 12)}
    single = {n: bench.fit(n, ("embedded",)) for n in (6, 8, 12)}
    smooth, other, shrunk = [], [], []
    for n in (6, 8, 12):
        for kind, made in (("all directions", fits[n]), ("embedded", single[n])):
            own = made.correction
            smooth.append({"steps": n, "directions": kind, "per step": bench.ratio(n, own),
                           "smoothed": bench.ratio(n, changed(own, smoothed))})  # fmt: skip
    for kind, many in (("all directions", fits), ("embedded", single)):
        moved = resampled(many[12].correction, bench.plan(8).sigmas())
        other.append({"directions": kind, "from 12 to 8 steps": bench.ratio(8, moved),
                      "fitted at 8": bench.ratio(8, many[8].correction)})  # fmt: skip
    for kind, directions in (("all directions", USUAL), ("embedded", ("embedded",))):
        for seeds in (2, 8, len(OWN)):
            own = bench.fit(8, directions, seeds).correction
            line: Row = {"directions": kind, "seeds": seeds}
            for share in (1.0, 0.75, 0.5, 0.0):
                mixed = changed(own, lambda w, s=share, d=directions: (
                    s * w + (1 - s) * rule(bench, 8, d)))  # fmt: skip
                line[f"{share:g} fitted"] = bench.ratio(8, mixed)
            shrunk.append(line)
    guided = cfg.fit(8).correction
    moves = [
        {"used with": "no guidance", "fitted without": bench.ratio(8, fits[8].correction),
         "fitted with CFG 1.25": bench.ratio(8, guided)},
        {"used with": "CFG 1.25", "fitted without": cfg.ratio(8, fits[8].correction),
         "fitted with CFG 1.25": cfg.ratio(8, guided)},
    ]  # fmt: skip
    return {
        "Smoothing over steps": smooth,
        "Other numbers of steps": other,
        "Shrinkage towards auto": shrunk,
        "Transfer between guidance weights": moves,
        "Heun's weight / -(1 - r)": weights_of(single),
    }


def weights_of(single: dict[int, Fit]) -> list[Row]:
    """Fitted multiples of the embedded difference; 1 is the exponential limit, 0 Heun's own."""
    rows = []
    for n, made in single.items():
        levels = torch.tensor(made.correction.sigmas, dtype=torch.float64)
        limit = -(1 - levels[1:] / levels[:-1])
        for sigma, (weight,), most in zip(levels, made.correction.weights, limit, strict=False):
            rows.append({"steps": n, "sigma": sigma.item(), "share": weight / most.item()})
    return rows


@click.command(context_settings=CONTEXT)
@clean_exit
def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    for title, rows in tables().items():
        click.echo(f"{title}\n\n{to_markdown(rows)}")


if __name__ == "__main__":
    main()

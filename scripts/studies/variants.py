"""Variants of the calibration: do they win on held-out seeds?

    python -m scripts.studies variants     # prints the last tables of docs/beyond.md

Digits, Heun on the EDM schedule: ratios of the error to the plain solver's on held-out seeds;
standard errors leave out blocks of seeds.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch
from torch import Tensor

from erk.calibration.fit import USUAL, Fit, ReferenceBatch, fit
from erk.calibration.solver_error import converged, errors, ratio, reference_path
from erk.commands.cli import CONTEXT, clean_exit
from erk.method.corrections import Correction, auto
from erk.method.settings import Settings
from metrics.report import to_markdown
from scripts.studies.data import load
from scripts.studies.rows import Row

SEEDS, HELD_OUT = range(20_000, 20_064), range(1_000, 1_128)
STEPS = (6, 8, 12)
KINDS = {"all directions": USUAL, "embedded": ("embedded",)}


class Experiment:
    """One data set with the converged solutions of its held-out seeds."""

    def __init__(self, name: str) -> None:
        self.data = load(name)
        self.noise, self.labels = self.data.draw(HELD_OUT)
        self.ends = converged(
            self.settings(32), self.data.model, self.noise, self.labels, self.data.guide_model
        )

    def settings(self, steps: int) -> Settings:
        """Return Heun on the EDM schedule."""
        return self.data.settings(steps=steps, schedule="edm")

    def fit(self, steps: int, directions: tuple[str, ...] = USUAL, seeds: int = len(SEEDS)) -> Fit:
        """Fit Heun's correction on the first `seeds` of SEEDS."""
        noise, labels = self.data.draw(SEEDS[:seeds])
        problem = self.data.problem(self.settings(steps))
        path = reference_path(problem.exact_drift(labels), noise, problem.sigmas)
        return fit(problem, [ReferenceBatch(noise, labels, path.unbind())], directions)

    def ratio(self, steps: int, correction: Correction) -> tuple[float, float]:
        """Measure the error with a correction relative to without."""
        plain = self.settings(steps)
        before, after = (
            errors(s, self.data.problem(s).drift(self.labels), self.noise, self.ends)
            for s in (plain, replace(plain, erk=correction))
        )
        value, error = ratio(after, before)
        return value, error

    def rule(self, steps: int, directions: tuple[str, ...]) -> Tensor:
        """Return the weights of `auto` in the columns of `directions`, [N, K]."""
        settings = self.settings(steps)
        sigmas = settings.sigmas(self.data.model)
        weights = auto(settings.solver_for(sigmas, self.data.model), sigmas).weights
        column = torch.tensor(weights, dtype=torch.float64)
        return column * torch.tensor([float(name == "embedded") for name in directions])


def changed(correction: Correction, change: Callable[[Tensor], Tensor]) -> Correction:
    """Apply a change to the weights [N, K] of a correction."""
    weights = change(torch.tensor(correction.weights, dtype=torch.float64))
    return replace(correction, weights=tuple(tuple(row) for row in weights.tolist()))


def smoothed(weights: Tensor) -> Tensor:
    """Average each step's weights with their neighbours', 1/4, 1/2, 1/4."""
    ends = torch.cat([weights[:1], weights, weights[-1:]])
    return (ends[:-2] + 2 * ends[1:-1] + ends[2:]) / 4


def resampled(correction: Correction, sigmas: Tensor) -> Correction:
    """Interpolate weight / (1 - sigma_{i+1}/sigma_i) in ln sigma to other noise levels."""
    old = torch.tensor(correction.sigmas, dtype=torch.float64)
    new = sigmas[sigmas > 0].double()
    scaled = torch.tensor(correction.weights, dtype=torch.float64)
    scaled = scaled / (1 - old[1:] / old[:-1])[:, None]
    x, y = new[:-1].log(), old[:-1].log().flip(0).contiguous()
    right = torch.searchsorted(y, x).clamp(1, len(y) - 1)
    t = ((x - y[right - 1]) / (y[right] - y[right - 1])).clamp(0, 1)[:, None]
    rows = scaled.flip(0)
    weights = ((1 - t) * rows[right - 1] + t * rows[right]) * (1 - new[1:] / new[:-1])[:, None]
    return Correction(
        tuple(new.tolist()), correction.directions, tuple(map(tuple, weights.tolist()))
    )


@torch.inference_mode()
def tables() -> dict[str, list[Row]]:
    """Return title -> rows."""
    plain, guided = Experiment("digits"), Experiment("digits-cfg")
    fits = {kind: {n: plain.fit(n, names) for n in STEPS} for kind, names in KINDS.items()}
    return {
        "Smoothing over steps": smoothing(plain, fits),
        "Other numbers of steps": other_steps(plain, fits),
        "Shrinkage towards auto": shrinkage(plain),
        "Transfer between guidance weights": transfer(plain, guided, fits["all directions"][8]),
        "Heun's weight / -(1 - r)": embedded_weights(fits["embedded"]),
    }


Fits = dict[str, dict[int, Fit]]


def smoothing(experiment: Experiment, fits: Fits) -> list[Row]:
    """Average weights over neighbouring steps."""
    rows = []
    for n in STEPS:
        for kind in KINDS:
            correction = fits[kind][n].correction
            rows.append({
                "steps": n,
                "directions": kind,
                "per step": experiment.ratio(n, correction),
                "smoothed": experiment.ratio(n, changed(correction, smoothed)),
            })  # fmt: skip
    return rows


def other_steps(experiment: Experiment, fits: Fits) -> list[Row]:
    """Use the weights of 12 steps at 8."""
    rows = []
    for kind in KINDS:
        moved = resampled(fits[kind][12].correction, experiment.settings(8).sigmas())
        rows.append({"directions": kind, "from 12 to 8 steps": experiment.ratio(8, moved),
                     "fitted at 8": experiment.ratio(8, fits[kind][8].correction)})  # fmt: skip
    return rows


def shrinkage(experiment: Experiment) -> list[Row]:
    """Mix fitted weights with those of auto."""
    rows = []
    for kind, directions in KINDS.items():
        rule = experiment.rule(8, directions)
        for seeds in (2, 8, len(SEEDS)):
            fitted = experiment.fit(8, directions, seeds).correction
            row: Row = {"directions": kind, "seeds": seeds}
            for share in (1.0, 0.75, 0.5, 0.0):

                def mix(weights: Tensor, share: float = share, rule: Tensor = rule) -> Tensor:
                    return share * weights + (1 - share) * rule

                row[f"{share:g} fitted"] = experiment.ratio(8, changed(fitted, mix))
            rows.append(row)
    return rows


def transfer(plain: Experiment, guided: Experiment, fitted: Fit) -> list[Row]:
    """Use weights that are fitted without model guidance with it, and the reverse."""
    columns: dict[str, Any] = {"fitted without": fitted.correction,
                               "fitted with CFG 1.25": guided.fit(8).correction}  # fmt: skip
    return [
        {"used with": name} | {column: e.ratio(8, c) for column, c in columns.items()}
        for name, e in (("no guidance", plain), ("CFG 1.25", guided))
    ]


def embedded_weights(fits: dict[int, Fit]) -> list[Row]:
    """Divide fitted multiples of the embedded difference by the exponential limit -(1 - r)."""
    rows = []
    for n, fitted in fits.items():
        levels = torch.tensor(fitted.correction.sigmas, dtype=torch.float64)
        limits = -(1 - levels[1:] / levels[:-1])
        for sigma, (weight,), limit in zip(levels, fitted.correction.weights, limits, strict=False):
            rows.append({"steps": n, "sigma": sigma.item(), "share": weight / limit.item()})
    return rows


@click.command(context_settings=CONTEXT)
@clean_exit
def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    for title, rows in tables().items():
        click.echo(f"{title}\n\n{to_markdown(rows)}")

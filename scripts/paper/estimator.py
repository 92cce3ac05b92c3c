"""Figures 3 and 7: the cost-free estimates of stiffness and direction against the Jacobian's.

Along Heun's trajectory every state with a pair is compared with JVP power iteration and, where a
state has few dimensions, with the exact eigenvalues of its Jacobian.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.stats import beta, spearmanr
from torch import Tensor

from erk.analysis.oracles import cosine, exact_dominant, jacobian, power_iteration
from erk.analysis.plots import COLOURS, GREY, panels, png
from erk.calibration.parts import Parts
from erk.generation.job import Job, computation, image_identity
from erk.generation.options import open_job
from erk.method.point import Drift, Point
from erk.method.sampler import integrate
from erk.method.stiffness import stiffness
from erk.models.noise import noise_and_labels
from erk.runtime.provenance import provenance
from scripts.paper.config import Estimator, Request
from scripts.paper.page import significant, table_of
from scripts.paper.plan import describe, options_of_row
from scripts.paper.tables import Content, write_content

VERSION = 1  # of the numbers of a state; raise it when they change
SMALL = 64  # dimensions up to which Jacobians are written out: D JVPs per state
QUARTILES = ("25 %", "median", "75 %")
SHOWN = (1, 3, 10, 30, 100, 300)  # iterations in the table of Figure 7
OWN, TRUE = "error to the last iteration", "error to the exact value"
RELATIVE = "relative error to the exact value"
ESTIMATE, POWER, EXACT = "estimate", "power iteration", "exact"
DRIFT, SOLUTION, EIGENVECTOR = (
    "cos drift difference",
    "cos solution difference",
    "cos power iteration",
)
VALUES = (ESTIMATE, POWER, EXACT, DRIFT, SOLUTION, EIGENVECTOR)
RATIO, WITHIN = "estimate / power iteration", "Pearson of logs, mean within a step"


class States(NamedTuple):
    """The states with a pair, of S steps and N seeds."""

    dims: int  # numbers in a state
    sigma: Tensor  # noise level of each step                                 [S]
    values: dict[str, Tensor]  # see ``_compare``; NaN: not known             [S, N] each
    history: Tensor  # power iteration's stiffness after each of K iterations [K, S, N]


def run(config: Estimator, request: Request) -> list[Path]:
    """Compare the estimates with their references, write Figure 3 or 7 and return the paths."""
    options = options_of_row(config, config.rows[0], request) | {
        "precision": "fp32", "compile": "never"  # compiled networks have no JVP
    }  # fmt: skip
    iterations = config.options.iterations
    method = (
        f"Every state of {options['preset']} that has a pair, {options['steps']} Heun steps, seeds "
        f"{options['seeds']}; power iteration of {iterations} JVPs in float32 from a random vector."
    )
    if request.dry_run:
        click.echo(f"{config.name}: {method}\nThe JVPs come in addition to:\n")
        click.echo(describe(config, request))
        return []
    job = open_job(options)
    key = [image_identity(job.identity), job.model.sha256, job.seeds, job.batch, computation()]
    parts = Parts(request.rows_folder, [*key, iterations], VERSION)  # Figures 3 and 7 share them
    states = study(job, iterations, parts)
    content = FIGURES[config.options.show](states)
    notes = [method, *content.notes]
    if states.dims <= SMALL:
        notes.insert(1, "The Jacobians are computed in full, one JVP per dimension, and the "
                     "iterations multiply by them.")  # fmt: skip
    content = content._replace(notes=notes)
    return write_content(config, request, options["preset"], content, provenance(job.model.device))


@torch.no_grad()
def study(job: Job, iterations: int, kept: Parts) -> States:
    """Compute estimates and references at every state of Heun's trajectories with a pair."""
    batches = [job.seeds[i : i + job.batch] for i in range(0, len(job.seeds), job.batch)]
    parts = [_batch(job, seeds, iterations, kept) for seeds in batches]
    values = {name: torch.cat([part.values[name] for part in parts], 1) for name in parts[0].values}
    return parts[0]._replace(values=values, history=torch.cat([part.history for part in parts], 2))


def _batch(job: Job, seeds: Sequence[int], iterations: int, kept: Parts) -> States:
    noise, labels = noise_and_labels(seeds, job.model)
    drift = job.settings.drift(job.model, labels, job.guide)
    pairs = [
        (state.step.start, state.step.twin)
        for state in integrate(drift, noise, job.settings)
        if state.step.twin is not None
    ]
    sigma = torch.stack([start.sigma for start, _ in pairs])
    if noise[0].numel() <= SMALL:  # the states of all steps side by side
        j = torch.cat([jacobian(drift, start.x, start.sigma) for start, _ in pairs])
        start, twin = (_side_by_side(points) for points in zip(*pairs, strict=True))
        compared = [_compare(linear(start, j), start, twin, iterations, j)]
    else:
        compared = [
            kept.keep(f"{seeds[0]} {i}", partial(_compare, drift, *pair, iterations))
            for i, pair in enumerate(pairs)
        ]
    rows = torch.cat(compared, 1).cpu().unflatten(1, (len(pairs), len(seeds)))
    values = dict(zip(VALUES, rows, strict=False))
    return States(noise[0].numel(), sigma.double(), values, rows[len(VALUES) :])


def _side_by_side(points: Sequence[Point]) -> Point:
    return Point(
        torch.cat([p.x for p in points]),
        torch.cat([p.f for p in points]),
        torch.stack([p.sigma for p in points]),
    )


def _compare(
    drift: Drift, start: Point, twin: Point, iterations: int, j: Tensor | None = None
) -> Tensor:
    """Return the VALUES of n states and power iteration's history, [VALUES + K, n].

    Stiffness by the pair (Eq. 17), by power iteration and as the largest |eigenvalue|; |cos| of
    power iteration's vector with both differences of the pair and with the exact eigenvector.
    ``j``: their Jacobians [n, D, D], where the exact values are wanted.
    """
    x, f, sigma = start
    power = power_iteration(drift, x, sigma, iterations)
    exact = exact_cosine = torch.full_like(power.rho, math.nan)
    if j is not None:
        exact = torch.linalg.eigvals(j.double()).abs().amax(1)
        exact_cosine = cosine(exact_dominant(drift, x, sigma).v, power.v).abs()
    values = {
        ESTIMATE: stiffness(start, twin).rho.flatten(),
        POWER: power.rho,
        EXACT: exact,
        DRIFT: cosine(f - twin.f, power.v).abs(),
        SOLUTION: cosine(x - twin.x, power.v).abs(),
        EIGENVECTOR: exact_cosine,
    }
    return torch.stack(
        [row.double() for row in (*(values[name] for name in VALUES), *power.history)]
    )


def linear(at: Point, j: Tensor) -> Drift:
    """The drift's linear part at the states ``at`` with Jacobians j [B, D, D].

    A JVP of it is J v without a network evaluation, so that many iterations cost next to nothing.
    """

    def evaluate(x: Tensor, sigma: Tensor) -> Point:
        away = (j @ (x - at.x).flatten(1)[..., None]).reshape(x.shape)
        return Point(x, at.f + away, sigma)

    return evaluate


def estimates(states: States, bins: int = 8) -> Content:
    """Figure 3: what the pair says, in bins of equally many states from calm to stiff."""
    values = {name: one.flatten() for name, one in states.values.items()}
    parts = values[POWER].argsort().tensor_split(bins)
    rows = [
        {"states": len(part), "stiffness": _median(values[POWER][part]),
         RATIO: _median((values[ESTIMATE] / values[POWER])[part])}
        | {name: _median(values[name][part]) for name in (DRIFT, SOLUTION, EIGENVECTOR)}
        for part in parts
    ]  # fmt: skip
    random = float(beta.median(0.5, (states.dims - 1) / 2) ** 0.5)
    together = correlations(states) | {"|cos| of a random direction": random}
    tables = [
        table_of(
            "Medians in bins of equally many states, from calm to stiff. |cos| is with the "
            "dominant eigenvector from power iteration; in the last column it is between that "
            "vector and the exact eigenvector of the Jacobian's symmetric part.",
            rows,
        ),
        table_of(
            "Over all states: correlations of the estimated stiffness with power iteration's.",
            [together],
        ),
    ]
    with panels(2) as (figure, axes):
        _scatter(axes[0, 0], states)
        _directions(axes[0, 1], values, parts, random)
        return Content(tables, [*rows, together], [_summary(rows, together)], {"": png(figure)})


def _summary(rows: Sequence[dict[str, Any]], together: dict[str, float]) -> str:
    """Summarize the numbers of Figure 3."""
    nearer = sum(row[DRIFT] > row[SOLUTION] for row in rows)
    aligned = sum(row[DRIFT] > 2 * together["|cos| of a random direction"] for row in rows)
    return (
        f"From the calmest bin to the stiffest the median estimate is {rows[0][RATIO]:.2f} to "
        f"{rows[-1][RATIO]:.2f} times power iteration's value, and "
        f"{min(r[RATIO] for r in rows):.2f} times at least. Both follow the noise level over "
        f"decades; among the seeds of one step the correlation of their logarithms is "
        f"{together[WITHIN]:.2f}. The drift difference is nearer to the eigenvector than the "
        f"solution difference in {nearer} of {len(rows)} bins, and its |cos| is more than twice "
        f"that of a random direction in {aligned}."
    )


def correlations(states: States) -> dict[str, float]:
    """Of estimated and power iteration's stiffness: logs over all states, ranks, logs in a step.

    Both follow the noise level over decades, which alone makes the first two large; the last is
    the mean correlation among the seeds of one step.
    """
    logs = torch.stack([states.values[name].log() for name in (ESTIMATE, POWER)])
    within = [torch.corrcoef(step)[0, 1].item() for step in logs.unbind(1)]
    both = logs.flatten(1)
    return {
        "Pearson of logs": torch.corrcoef(both)[0, 1].item(),
        "Spearman": float(spearmanr(*both.numpy()).statistic),
        WITHIN: sum(within) / len(within),
    }


def convergence(states: States) -> Content:
    """Figure 7: quartiles over all states of power iteration's error after each iteration."""
    history, exact = states.history, states.values[EXACT]
    errors = {OWN: (history - history[-1]).abs()}
    notes = [f"The {OWN} is the paper's measure, 0 at the end by definition."]
    if not exact.isnan().any():
        errors[TRUE] = (history - exact).abs()
        errors[RELATIVE] = errors[TRUE] / exact
        notes.append(
            f"The median error to the exact value is {_median(errors[TRUE][-1]):.2g} at the end, "
            f"{_median(errors[RELATIVE][-1]):.2g} relative to it."
        )
    data = [
        {"iteration": k + 1}
        | {f"{name}, {part}": value for name, one in errors.items()
           for part, value in zip(QUARTILES, _quartiles(one[k]), strict=True)}
        for k in range(len(history))
    ]  # fmt: skip
    chosen = [data[k - 1] for k in SHOWN if k <= len(data)]
    tables = [
        table_of(
            f"{name[0].upper()}{name[1:]}, over all states.",
            [{"iteration": row["iteration"]}
             | {part: row[f"{name}, {part}"] for part in QUARTILES} for row in chosen],
        )
        for name in errors
    ]  # fmt: skip
    absolute = [name for name in errors if name != RELATIVE]
    groups = [absolute, [RELATIVE]] if RELATIVE in errors else [absolute]
    with panels(len(groups)) as (figure, axes):
        for axis, names, title in zip(axes[0], groups, "ab", strict=False):
            _curves(axis, data, names, f"({title}) median (solid) and quartiles (dashed)")
        return Content(tables, data, notes, {"": png(figure)})


FIGURES = {"estimates": estimates, "convergence": convergence}


def _scatter(axis: Axes, states: States) -> None:
    x, y = states.values[POWER], states.values[ESTIMATE]
    sigma = states.sigma.log10()[:, None].expand_as(x)
    dots = axis.scatter(x, y, c=sigma, cmap="viridis", s=6, linewidths=0)
    ends = [x.min().item(), x.max().item()]
    axis.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", label="equal")
    axis.set(xscale="log", yscale="log", title="(a) stiffness", xlabel="power iteration",
             ylabel="estimate of the pair")  # fmt: skip
    axis.legend(loc="upper left")
    axis.figure.colorbar(dots, ax=axis, label=r"$\log_{10}\sigma$", aspect=30, pad=0.02)


def _directions(
    axis: Axes, values: dict[str, Tensor], parts: Sequence[Tensor], random: float
) -> None:
    x = np.array([_median(values[POWER][part]) for part in parts], dtype=float)
    looks = ((DRIFT, COLOURS[0], "o", "drift difference"),
             (SOLUTION, COLOURS[1], "s", "solution difference"))  # fmt: skip
    for name, colour, mark, label in looks:
        quartiles = np.array([_quartiles(values[name][part]) for part in parts], dtype=float)
        low, mid, high = quartiles.T
        axis.plot(x, mid, color=colour, marker=mark, label=label)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(random, color=GREY, linestyle=":", linewidth=1.2, label="random direction")
    axis.set(xscale="log", title="(b) direction: median and quartiles", ylim=(0, None),
             xlabel="stiffness (power iteration)", ylabel="|cos| with the eigenvector")  # fmt: skip
    axis.legend(loc="upper left")


def _curves(axis: Axes, data: Sequence[dict[str, Any]], names: Sequence[str], title: str) -> None:
    k = [row["iteration"] for row in data]
    for name, colour in zip(names, COLOURS, strict=False):
        for part in QUARTILES:
            solid = part == "median"
            axis.plot(k, [row[f"{name}, {part}"] or math.nan for row in data], color=colour,
                      linestyle="-" if solid else "--", linewidth=1.8 if solid else 0.9,
                      label=name if solid else None)  # fmt: skip
    axis.set(yscale="log", xlabel="iteration", ylabel="error of the stiffness", title=title)
    axis.legend(loc="upper right")


def _quartiles(values: Tensor) -> list[float | None]:
    at = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    return [significant(value) for value in torch.quantile(values.flatten(), at).tolist()]


def _median(values: Tensor) -> float | None:
    return significant(values.median().item())

"""The paper's toy results as numbers: Table 1, Figures 1 and 2, and the gain by ERK-Guid.

Schedule, solver and guidance are the package's, on the toy's exact drift in float64
(`erk.analysis.toy`). Where the published numbers are not reproduced, both are given.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.analysis import toy
from erk.analysis.oracles import cosine, local_error
from erk.method.drift import Denoiser, GuidedDrift
from erk.method.guidance import erk_guid, erk_push, memoryless
from erk.method.point import Point, Step, dot, norm
from erk.method.sampler import steps
from erk.method.settings import Settings
from erk.method.solvers import heun
from erk.method.stiffness import stiffness

SIGMA_MAX, STEPS, SUBSTEPS = 5.0, 32, 100
STEP = 28  # "the 29th sampling step (out of 32)"
CALM, STIFF = (0.048, 0.085), (0.54, 1.04)  # centres of the crosses, read off Figure 1
BRANCH = (1.00335, 0.32295)  # a point where Table 1 is reproduced within 2 %
HALF_LENGTH = 0.0177  # of the lines AB, CD, EF and GH, read off Figure 1
LINES = {"AB": (CALM, 0), "CD": (CALM, 1), "EF": (STIFF, 0), "GH": (STIFF, 1)}
AXES = ("dominant", "subdominant")
PUBLISHED = {  # Table 1, along AXES
    "LTE": (7.22e-5, 5.78e-6),
    "ERK solution difference": (4.03e-4, 6.18e-5),
}
QUARTILES = ("Q0-25", "Q25-50", "Q50-75", "Q75-100")
OPTIMUM = 1 / math.sqrt(6)  # the w_stiff that makes Heun third order on linear ODEs (Eq. 45)
WEIGHTS = ((OPTIMUM, 0.5), (0.5, 0.5), (0.75, 0.5), (1.0, 0.5), (1.5, 0.0))  # w_stiff, w_con


def levels(count: int = STEPS) -> Tensor:
    """Return the positive noise levels of the toy's EDM schedule, [count] float64."""
    return Settings(steps=count, sigma_max=SIGMA_MAX, dtype=torch.float64).sigmas()[:-1]


def noisy_states(mixture: toy.Mixture, count: int, sigma: Tensor | float, seed: int) -> Tensor:
    """Draw exact samples of p(x; sigma), [count, 2] float64."""
    draw = torch.Generator().manual_seed(seed)
    clean, _ = toy.draw_samples(mixture, count, draw)
    return clean + sigma * torch.randn(count, 2, generator=draw, dtype=torch.float64)


def axes(mixture: toy.Mixture, x: Tensor, sigma: Tensor) -> Tensor:
    """Compute both eigenvectors of df/dx, dominant first, oriented by <f, v> >= 0: [B, 2, 2]."""
    v = toy.dominant(mixture, x, sigma).v
    across = torch.stack([-v[:, 1], v[:, 0]], 1)
    f = toy.drift(mixture)(x, sigma).f
    return torch.stack([v, torch.where(dot(f, across) < 0, -across, across)], 1)


def table1(mixture: toy.Mixture, centre: tuple[float, float] = STIFF) -> list[dict[str, Any]]:
    """Compute Table 1: errors of one Heun step from `centre` along both eigenvectors."""
    x, (sigma, sigma_next) = torch.tensor([centre], dtype=torch.float64), levels()[STEP:][:2]
    drift = toy.drift(mixture)
    step = heun(drift, x, sigma, sigma_next)
    vectors = {
        "LTE": local_error(drift, x, sigma, sigma_next, SUBSTEPS),
        "ERK solution difference": step.x - step.memory.x,
    }
    basis, rows = axes(mixture, x, sigma)[0], []
    for name, published in PUBLISHED.items():
        for axis, length, theirs in zip(AXES, basis @ vectors[name][0], published, strict=True):
            ours = length.abs().item()
            rows.append({
                "vector": name, "axis": axis,
                "here": ours, "published": theirs, "here / published": ours / theirs,
            })  # fmt: skip
    return rows


class Line(NamedTuple):
    """The drift along one line of Figure 1."""

    centre: Tensor  # [2]
    direction: Tensor  # unit eigenvector, from the first letter to the second   [2]
    places: Tensor  # distance from the centre along the direction          [n]
    drift: Tensor  # f on (dominant, subdominant) eigenvector of the centre [n, 2]


class Figure1(NamedTuple):
    """The content of Figure 1."""

    x: Tensor  # samples of p(x; sigma_28)  [N, 2]
    rho: Tensor  # their stiffness          [N]
    lines: dict[str, Line]  # AB, CD, EF, GH


def figure1(mixture: toy.Mixture, count: int, seed: int = 0, places: int = 61) -> Figure1:
    """Compute the stiffness at samples of the 29th step and the drift along AB, CD, EF, GH."""
    sigma = levels()[STEP]
    x = noisy_states(mixture, count, sigma, seed)
    offsets = torch.linspace(-HALF_LENGTH, HALF_LENGTH, places, dtype=torch.float64)
    lines = {}
    for name, (point, axis) in LINES.items():
        centre = torch.tensor([point], dtype=torch.float64)
        basis = axes(mixture, centre, sigma)[0]
        f = toy.drift(mixture)(centre + offsets[:, None] * basis[axis], sigma).f
        lines[name] = Line(centre[0], basis[axis], offsets, f @ basis.T)
    return Figure1(x, toy.dominant(mixture, x, sigma).rho, lines)


class ExactRun(NamedTuple):
    """Exact trajectories and measurements at their states that have a pair."""

    start: Tensor  # [N, 2] at sigma_max
    end: Tensor  # [N, 2] at sigma_min
    rho: Tensor  # stiffness                                      [30, N]
    rho_estimated: Tensor  # by the embedded pair                 [30, N]
    cosines: dict[str, Tensor]  # of a vector with the dominant eigenvector, which lies towards f
    errors: dict[str, Tensor]  # |LTE| of one guided step; both [30, N] each


@torch.no_grad()
def exact_run(
    mixture: toy.Mixture,
    start: Tensor,
    guides: Mapping[str, tuple[Denoiser, Denoiser]],
    substeps: int = SUBSTEPS,
) -> ExactRun:
    """Follow exact trajectories from start [N, 2] through the 32 levels (App. B.1).

    Every interval is solved by `substeps` Heun steps; the one Heun step from the same exact state
    gives LTE and ERK differences, its twin being the previous step's Euler solution. `guides` are
    pairs of networks (main, guide), given class A. 30 of the 31 states have a twin.
    """
    drift, x, memory, rows = toy.drift(mixture), start, None, []
    for sigma, sigma_next in zip(levels(), levels()[1:], strict=False):
        step = heun(drift, x, sigma, sigma_next, memory)
        lte = local_error(drift, x, sigma, sigma_next, substeps)
        if step.twin is not None:
            rows.append(_measure(mixture, step, lte, guides))
        x, memory = step.x + lte, step.memory
    rho, estimated, cosines, errors = zip(*rows, strict=True)
    return ExactRun(
        start, x, torch.stack(rho), torch.stack(estimated), _stacked(cosines), _stacked(errors)
    )


def _measure(
    mixture: toy.Mixture, step: Step, lte: Tensor, guides: Mapping[str, tuple[Denoiser, Denoiser]]
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Measure one step: stiffness, its estimate, cosines and guided local errors, each [N]."""
    start, twin = step.start, step.twin
    assert twin is not None
    rho, v, _ = toy.dominant(mixture, start.x, start.sigma)
    pair = stiffness(start, twin)
    vectors = {
        "LTE": lte,
        "ERK solution difference": step.x - step.memory.x,
        "ERK drift difference": pair.v,
    }
    vectors |= {name: guidance(start, *networks) for name, networks in guides.items()}
    errors = {name: norm(lte + step.x - guide(step)).flatten() for name, guide in GUIDANCES.items()}
    cosines = {name: cosine(vector, v) for name, vector in vectors.items()}
    return rho, pair.rho.flatten(), cosines, errors


def guidance(at: Point, main: Denoiser, guiding: Denoiser) -> Tensor:
    """Compute D_main - D_guide for class A, the direction of model guidance, [N, 2]."""
    labels = torch.tensor([[1.0, 0.0]]).expand(len(at.x), 2)
    pair = GuidedDrift(main, labels, guiding, guidance=2.0).denoise(at.x, at.sigma)
    assert pair[1] is not None
    return pair[0] - pair[1]


def _stacked(rows: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def gaussian_rule(step: Step) -> Tensor:
    """Apply ERK-Guid with c = max(0, (1/(sigma rho) - 1)/2) instead of w_stiff^2, and no gate.

    This removes Heun's local error on Gaussian data, where Eq. 9 need not drop df/dsigma: for
    x' = lambda x with lambda = sigma/(S^2 + sigma^2) it is c = S^2/(2 sigma^2).
    """
    correction = erk_push(step, w_stiff=1.0, w_con=0.0)
    if correction is None:
        return step.x
    c = ((1 / (step.start.sigma * correction.estimate.rho) - 1) / 2).clamp_min(0)
    return torch.where(correction.gate, step.x - c * correction.push, step.x)


def _name(w_stiff: float, w_con: float) -> str:
    return f"w_stiff {w_stiff:.3g}, w_con {w_con:g}"


GUIDANCES: dict[str, Callable[[Step], Tensor]] = {
    "none": lambda step: step.x,
    **{_name(w, c): partial(erk_guid, w_stiff=w, w_con=c) for w, c in WEIGHTS},
    "Gaussian rule": gaussian_rule,
}


def by_quartile(
    values: Tensor, rho: Tensor, statistic: Callable[[Tensor], Tensor] = torch.median
) -> dict[str, float]:
    """Compute a statistic of `values` within the quartiles of `rho`, of equal shapes."""
    values, rho = values.flatten(), rho.flatten()
    edges = torch.quantile(rho, torch.tensor([0.25, 0.5, 0.75], dtype=rho.dtype))
    quartile = torch.bucketize(rho, edges)
    return {name: statistic(values[quartile == i]).item() for i, name in enumerate(QUARTILES)}


def figure2(run: ExactRun) -> list[dict[str, Any]]:
    """Compute Figure 2: median |cos| with the dominant eigenvector by quartile of stiffness.

    The signed medians stand beside them: LTE = exact - Heun lies against v, the ERK solution
    difference along it. "within a step": quartiles of each noise level by itself, averaged.
    """
    rows = []
    for name, values in run.cosines.items():
        rows.append({"quantity": name, "median": "|cos|"} | by_quartile(values.abs(), run.rho))
        rows.append({"quantity": name, "median": "cos"} | by_quartile(values, run.rho))
        single = [by_quartile(v.abs(), r) for v, r in zip(values, run.rho, strict=True)]
        mean = {q: sum(row[q] for row in single) / len(single) for q in QUARTILES}
        rows.append({"quantity": name, "median": "|cos|, within a step"} | mean)
    return rows


def estimates(run: ExactRun) -> dict[str, Any]:
    """Compare estimated and exact stiffness: correlation of logs, median ratio by quartile."""
    logs = torch.stack([run.rho_estimated.flatten(), run.rho.flatten()]).log()
    ratio = by_quartile(run.rho_estimated / run.rho, run.rho)
    return {"correlation of logs": torch.corrcoef(logs)[0, 1].item(), "median ratio": ratio}


def guided_errors(run: ExactRun) -> list[dict[str, Any]]:
    """Compute the mean |LTE| of a guided step over the unguided one, by quartile of rho."""
    plain = by_quartile(run.errors["none"], run.rho, torch.mean)
    rows = []
    for name, errors in run.errors.items():
        guided = by_quartile(errors, run.rho, torch.mean)
        rows.append({"guide": name, **{q: guided[q] / plain[q] for q in QUARTILES}})
    return rows


def helps(
    mixture: toy.Mixture, start: Tensor, end: Tensor, counts: tuple[int, ...] = (8, 16, 32)
) -> list[dict[str, Any]]:
    """Compute distances of samples to the exact end points [N, 2], guided and unguided.

    Means with standard errors; those of the change are paired.
    """
    drift, rows = toy.drift(mixture), []
    for count in counts:
        plain = None
        for name, guide in GUIDANCES.items():
            *_, (x, _) = steps(drift, start, levels(count), heun, memoryless(guide))
            distance = norm(x - end)
            plain = distance if plain is None else plain  # the first guide is none
            ratio = distance.mean() / plain.mean()
            error = _standard_error(distance - ratio * plain) / plain.mean()
            rows.append({
                "steps": count,
                "guide": name,
                "distance": (distance.mean().item(), _standard_error(distance).item()),
                "change in %": (100 * (ratio.item() - 1), 100 * error.item()),
                "sliced W1": sliced_w1(x, end),
            })  # fmt: skip
    return rows


def _standard_error(values: Tensor) -> Tensor:
    return values.std() / math.sqrt(values.numel())


def sliced_w1(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Compute the sliced Wasserstein-1 distance of two sets of N points in the plane."""
    angle = torch.arange(directions, dtype=a.dtype) * (math.pi / directions)
    onto = torch.stack([angle.cos(), angle.sin()])
    return ((a @ onto).sort(0).values - (b @ onto).sort(0).values).abs().mean().item()

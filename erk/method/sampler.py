"""The sampling loop, and what may be collected along it."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from erk.method.baselines import adaptive_heun, with_langevin
from erk.method.drift import GuidedDrift, NonFiniteError, analytic_first
from erk.method.guidance import TELEMETRY, telemetry, unguided
from erk.method.point import Drift, Guide, Solver, Step, norm
from erk.method.settings import Churn, Noise, Settings, Twin
from erk.method.solvers import euler


def steps(
    drift: Drift,
    x: Tensor,
    sigmas: Tensor,
    solver: Solver,
    guide: Guide = unguided,
    churn: Churn | None = None,
) -> Iterator[tuple[Tensor, Step]]:
    """The one sampling loop: yields the carried state and the solver's Step of every interval.

    x [B, ...] at sigmas[0]; sigmas [N + 1] on the CPU in x's dtype. An interval that ends at
    sigma = 0 is Euler's and never guided: there x becomes D.
    """
    memory = None
    for sigma, sigma_next in pairwise(sigmas):
        if churn is not None:
            x, sigma = churn(x, sigma)
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)
            x = step.x
        else:
            step = solver(drift, x, sigma, sigma_next, memory)
            x, memory = guide(step), step.memory
        yield x, step


def loop(
    drift: GuidedDrift,
    x: Tensor,
    sigmas: Tensor,
    settings: Settings,
    randn_like: Noise = torch.randn_like,
    guide: Guide | None = None,
) -> Iterator[tuple[Tensor, Step]]:
    """Sample from the state `x` [B, ...] at sigmas[0]; `guide` replaces that of the settings."""
    if settings.adaptive_tau is not None:
        return adaptive_heun(drift, x, sigmas, settings.adaptive_tau)
    solver = settings.solver_for(sigmas, drift.model)
    if settings.pc_snr > 0:
        noise = randn_like if settings.pc_stochastic else None
        solver = with_langevin(solver, settings.pc_snr, noise)
    if settings.twin is not None:
        solver = with_twin(solver, settings.twin)
    if settings.w_stiff > 0 and not settings.erk_proj:
        solver = must_pair(solver)
    churn = settings.churn_for(drift.model, len(sigmas) - 1, randn_like)
    start = analytic_first(drift) if settings.afs else drift
    guide = guide or settings.guide(sigmas, drift.model, drift.guide_model)
    return steps(start, x, sigmas, solver, guide, churn)


def with_twin(solver: Solver, choose: Twin) -> Solver:
    """`solver` with a pair of one's own: choose(step, the step before or None) -> (twin, h)."""

    def chosen(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        inner, before = memory or (None, None)
        step = solver(drift, x, sigma, sigma_next, inner)
        twin, h = choose(step, before)
        return step._replace(twin=twin, h=h, memory=(step.memory, step))

    return chosen


def must_pair(solver: Solver) -> Solver:
    """`solver`, but ValueError if its second step has no pair: ERK-Guid would silently be off."""
    first = [True]

    def paired(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any) -> Step:
        step = solver(drift, x, sigma, sigma_next, memory)
        if step.twin is None and not first:
            raise ValueError(
                "this solver never offers ERK-Guid a pair (Step.twin and Step.h); "
                "give it one with twin=, or set w_stiff to 0."
            )
        first.clear()
        return step

    return paired


def integrate(
    drift: GuidedDrift, noise: Tensor, settings: Settings, randn_like: Noise = torch.randn_like
) -> Iterator[tuple[Tensor, Step]]:
    """`steps` from unit-variance noise [B, ...] by `settings`; raises NonFiniteError at the end.

    The check gathers one number per sample and step on the device and looks at them once, after
    the last step, so it never makes a GPU wait.
    """
    sigmas = settings.sigmas(drift.model)
    start = noise.to(settings.dtype) * sigmas[0]
    sums = []
    for x, step in loop(drift, start, sigmas, settings, randn_like):
        sums.append(x.flatten(1).sum(1, dtype=torch.promote_types(x.dtype, torch.float32)))
        yield x, step
    bad = (~torch.stack(sums).isfinite()).nonzero()
    if len(bad):
        index, sample = bad[0].tolist()
        raise NonFiniteError(sample, index, sigmas[index].item(), drift.in_half)


def solve(
    drift: GuidedDrift,
    noise: Tensor,
    settings: Settings,
    randn_like: Noise = torch.randn_like,
    watch: Callable[[Tensor, Step], None] | None = None,
) -> Tensor:
    """The last state of `integrate`, x0 [B, ...]; `watch` sees every state and Step."""
    x0 = noise
    for state, step in integrate(drift, noise, settings, randn_like):
        x0 = state
        if watch is not None:
            watch(state, step)
    return x0


class Trace:
    """Collects telemetry step by step; `result()` is {name: [steps, B]} (`guides.telemetry`)."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.rows: list[dict[str, Tensor]] = []

    def __call__(self, x: Tensor, step: Step) -> None:
        s = self.settings
        seen = telemetry(step, s.w_stiff, s.w_con, s.erk_scale)
        if s.erk is not None:
            push = norm(x - step.x).flatten()
            seen |= {"push": push, "gate": (push > 0).to(push.dtype)}
        self.rows.append(seen)

    def result(self) -> dict[str, Tensor]:
        return {name: torch.stack([row[name] for row in self.rows]) for name in TELEMETRY}

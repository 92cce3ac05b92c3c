"""The sampler: a schedule, a solver, a guide and one loop."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .drift import Denoiser, GuidedDrift
from .guides import TELEMETRY, erk_guid, telemetry, unguided
from .point import Drift, Guide, Solver, Step
from .schedule import make_schedule
from .solvers import PAIRED, euler, make_solver

Churn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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


@dataclass(frozen=True)
class Settings:
    """Everything that decides a sample beside the networks, the noise and the labels.

    Checked on construction (ValueError, one sentence), so that bad input fails before any
    weights are read. The names are those of `sample`.
    """

    solver: str = "heun"
    schedule: str | Sequence[float] = "edm"
    steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    w_stiff: float = 0.0
    w_con: float = 0.5
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    solver_options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.sigmas()
        make_solver(self.solver, self.solver_options)
        for name in ("guidance", "w_stiff", "w_con", "S_churn", "S_min", "S_noise"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, not {getattr(self, name)}.")
        for name in ("w_stiff", "w_con", "S_churn", "S_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name):g}.")
        if self.w_stiff > 0 and self.S_churn > 0:
            raise ValueError("ERK-Guid (w_stiff > 0) needs a deterministic step: set S_churn to 0.")
        if self.w_stiff > 0 and self.solver not in PAIRED:
            raise ValueError(
                f"the solver '{self.solver}' offers ERK-Guid no pair; "
                f"use one of {', '.join(sorted(PAIRED))}, or w_stiff 0."
            )
        if self.guidance_interval is not None and not (
            0 <= self.guidance_interval[0] < self.guidance_interval[1]
        ):
            raise ValueError(
                "guidance_interval must be (lo, hi) in sigma with 0 <= lo < hi, "
                f"not {self.guidance_interval}."
            )

    def sigmas(self, model: Any = None) -> Tensor:
        """The noise levels, [N + 1] in `dtype` on the CPU.

        As in EDM's sampler they stay within model.sigma_min and model.sigma_max and become levels
        that the model knows, model.round_sigma; a model without these takes any level.
        """
        lo = max(self.sigma_min, getattr(model, "sigma_min", 0.0))
        hi = min(self.sigma_max, getattr(model, "sigma_max", math.inf))
        made = make_schedule(self.schedule, self.steps, lo, hi, self.rho)
        return _round_sigma(model, made).to(self.dtype)

    def guide(self) -> Guide:
        """ERK-Guid with these weights, or no guide at w_stiff 0."""
        if self.w_stiff == 0:
            return unguided
        return partial(erk_guid, w_stiff=self.w_stiff, w_con=self.w_con)

    def churn(
        self, model: Any, intervals: int, randn_like: Callable[[Tensor], Tensor]
    ) -> Churn | None:
        """EDM's noise injection (Karras et al. 2022, Algorithm 2), or None when it is off."""
        if self.S_churn == 0:
            return None

        def inject(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            if not self.S_min <= sigma <= self.S_max:
                return x, sigma
            gamma = min(self.S_churn / intervals, math.sqrt(2) - 1)
            raised = _round_sigma(model, sigma + gamma * sigma).to(sigma)
            return x + (raised**2 - sigma**2).sqrt() * self.S_noise * randn_like(x), raised

        return inject


def _round_sigma(model: Any, sigma: Tensor) -> Tensor:
    return model.round_sigma(sigma) if hasattr(model, "round_sigma") else sigma


class NonFiniteError(FloatingPointError):
    """A sample became NaN or infinite: `sample` is its place in the batch, `step` counts from 0."""

    def __init__(self, sample: int, step: int, sigma: float, name: str | None = None):
        self.sample, self.step, self.sigma = sample, step, sigma
        who = f"sample {sample} of the batch" if name is None else name
        super().__init__(
            f"the network gave NaN or infinity for {who} at step {step} (sigma {sigma:g}); "
            "check the weights, or use --precision fp32."
        )


def integrate(
    drift: GuidedDrift,
    noise: Tensor,
    settings: Settings,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[tuple[Tensor, Step]]:
    """`steps` from unit-variance noise [B, ...] by `settings`; raises NonFiniteError at the end.

    The check gathers one number per sample and step on the device and looks at them once, after
    the last step, so it never makes a GPU wait.
    """
    sigmas = settings.sigmas(drift.model)
    start = noise.to(settings.dtype) * sigmas[0]
    solver = make_solver(settings.solver, settings.solver_options)
    churn = settings.churn(drift.model, len(sigmas) - 1, randn_like)
    sums = []
    for x, step in steps(drift, start, sigmas, solver, settings.guide(), churn):
        sums.append(x.flatten(1).sum(1))
        yield x, step
    bad = (~torch.stack(sums).isfinite()).nonzero()
    if len(bad):
        index, sample = bad[0].tolist()
        raise NonFiniteError(sample, index, sigmas[index].item())


def solve(
    drift: GuidedDrift,
    noise: Tensor,
    settings: Settings,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """The last state of `integrate`: x0 [B, ...]."""
    x0 = noise
    for state, _ in integrate(drift, noise, settings, randn_like):
        x0 = state
    return x0


@torch.no_grad()
def sample(
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    guide_model: Denoiser | None = None,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    return_trajectory: bool = False,
    trace: bool = False,
    **settings: Any,
) -> Any:
    """Solve the probability-flow ODE from unit-variance `noise` [B, ...]; returns x0 [B, ...].

    `settings` are the fields of `Settings`: solver, schedule (a name or a list of sigmas), steps
    (intervals), sigma_min, sigma_max, rho, guidance, guidance_interval, w_stiff, w_con, S_churn,
    S_min, S_max, S_noise, solver_options, dtype (of the state and of x0; networks see float32).
    `model` and `guide_model` are denoisers D(x, sigma, labels): an erk.Model or any callable.
    `randn_like` draws the churn noise. With `return_trajectory` the states [steps + 1, B, ...]
    follow x0; with `trace` a dict of [steps, B] (see `guides.telemetry`) follows, last.
    """
    plan = Settings(**settings)
    drift = GuidedDrift(model, labels, guide_model, plan.guidance, plan.guidance_interval)
    states: list[Tensor] = []
    seen: list[dict[str, Tensor]] = []
    x = noise
    for x, step in integrate(drift, noise, plan, randn_like):
        if return_trajectory:
            states.append(x)
        if trace:
            seen.append(telemetry(step, plan.w_stiff, plan.w_con))
    answer: list[Any] = [x]
    if return_trajectory:
        start = noise.to(plan.dtype) * plan.sigmas(model)[0]
        answer.append(torch.stack([start, *states]))
    if trace:
        answer.append({name: torch.stack([row[name] for row in seen]) for name in TELEMETRY})
    return answer[0] if len(answer) == 1 else tuple(answer)

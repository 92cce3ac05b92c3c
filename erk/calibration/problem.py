"""What a solver's own error is measured on: networks, settings and noise, and where the ODE ends.

The converged solution from the same noise is the yardstick (`solver_error`): it knows nothing of
how good the model is, only of how well the solver follows it, and needs no real images.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.analysis import toy
from erk.calibration.solver_error import EVALUATIONS, converged
from erk.method.drift import GuidedDrift
from erk.method.guidance import unguided
from erk.method.point import Guidance, Step
from erk.method.sampler import loop, solve
from erk.method.settings import Settings

Start = Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]
"""seeds -> unit noise [B, ...] and labels, as `erk.noise_and_labels` gives them."""


class Problem(NamedTuple):
    """An ODE, and the solver that is looked at."""

    model: Any
    guide: Any  # the guiding network, or None
    settings: Settings  # without ERK-Guid
    start: Start
    batch: int = 64  # samples at a time


class ExactToy:
    """The 2-D toy of class A in place of a network: its exact denoiser, from sigma 5 down."""

    sample_shape, label_dim, device = (2,), 0, torch.device("cpu")
    sigma_min, sigma_max = 0.002, 5.0
    name, licence = "the exact toy, class A", "Apache-2.0"

    def __init__(self) -> None:
        mixture = toy.tree("A")
        told = b"".join(part.numpy().tobytes() for part in mixture)
        self.sha256, self._denoise = hashlib.sha256(told).hexdigest(), toy.denoiser(mixture)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma), [B, 2] as x."""
        return self._denoise(x, sigma, labels)


def drift_of(problem: Problem, labels: Tensor | None) -> GuidedDrift:
    """The drift of the problem's networks, with its model guidance."""
    return problem.settings.drift(problem.model, labels, problem.guide)


@torch.inference_mode()
def ends_of(problem: Problem, seeds: Sequence[int], evaluations: int = EVALUATIONS) -> Tensor:
    """Where the ODE itself ends from the noise of the seeds, [B, ...]."""
    noise, labels = problem.start(seeds)
    plan, guide = problem.settings, problem.guide
    return converged(plan, problem.model, noise, labels, guide, evaluations)


@torch.inference_mode()
def run(
    problem: Problem,
    noise: Tensor,
    labels: Tensor | None,
    guidance: Guidance = unguided,
    watch: Callable[[Tensor, Step], None] | None = None,
) -> Tensor:
    """Where the solver ends with another guidance, [B, ...]; `watch` sees every step."""
    drift, plan = drift_of(problem, labels), problem.settings
    sigmas = plan.sigmas(problem.model)
    end = noise.to(plan.dtype) * sigmas[0]
    for x, step in loop(drift, end, sigmas, plan, guidance=guidance):
        end = x
        if watch is not None:
            watch(x, step)
    return end


def leveled(settings: Settings, model: Any) -> Settings:
    """The settings with the model's noise levels written out, for a stand-in that has none."""
    levels = settings.sigmas(model).tolist()
    return replace(settings, schedule=levels, rho=None, denoise_to_zero=False)


def count_nfe(settings: Settings) -> tuple[float, float]:
    """Evaluations per sample of the network and of its guide, counted on a stand-in for both.

    The stand-in is the exact denoiser of a Gaussian in place of a network's weights. Only adaptive
    steps (``adaptive_tau``) depend on what a network answers.
    """
    drift = settings.drift(gaussian, None, None if settings.guidance == 1 else gaussian)
    noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    solve(drift, noise, settings)
    return float(drift.nfe), float(drift.guide_nfe)


def gaussian(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """D(x; sigma) for data of mean 0 and standard deviation 0.5."""
    return x * 0.25 / (0.25 + sigma**2)

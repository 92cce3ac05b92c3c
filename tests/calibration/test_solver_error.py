"""The solver's error: the converged solution and ratios of errors."""

import math

import pytest
import torch
from adaptive import adaptive_solution

import erk
from erk.calibration.solver_error import converged, errors, ratio, reference_path
from erk.method.drift import GuidedDrift
from erk.method.settings import Settings

DEVIATION = 0.5


def gauss(x, sigma, labels=None):
    """The exact denoiser of N(0, 0.5^2)."""
    return x * DEVIATION**2 / (DEVIATION**2 + sigma**2)


def test_the_path_is_the_exact_solution():
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    sigmas = torch.tensor([80, 79.9, 11, 0.71, 0.05, 0.0020001, 0.002, 0], dtype=torch.float64)
    drift = GuidedDrift(gauss)
    path = reference_path(drift, noise, sigmas)
    assert path.shape == (8, 3, 1, 2, 2) and drift.nfe == 128
    scale = (DEVIATION**2 + sigmas**2).sqrt() / (DEVIATION**2 + 80**2) ** 0.5 * 80
    assert torch.allclose(path[:-1], scale[:-1, None, None, None, None] * noise, rtol=1e-5)
    assert torch.allclose(path[-1], gauss(path[-2], sigmas[-2]))
    end = converged(Settings(steps=9, dtype=torch.float64), gauss, noise)
    assert torch.allclose(end, path[-1], rtol=1e-4)


def test_the_path_of_a_network_agrees_with_adaptive_steps():
    """128 evaluations of DEIS against Dormand-Prince at a tolerance of 1e-5."""
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(500, 504), model)
    exact = adaptive_solution(model, noise * 80, labels)
    plan = Settings(schedule="logsnr")
    error = errors(plan, plan.drift(model, labels), noise, converged(plan, model, noise, labels))
    apart = (converged(plan, model, noise, labels) - exact).flatten(1).norm(dim=1).mean()
    assert apart < 1e-3 < 0.05 * error.mean()


def test_guidance_is_in_the_solution_and_erk_is_not():
    noise = torch.randn(2, 3, generator=torch.manual_seed(1))

    def guide(x, sigma, labels=None):
        return torch.zeros_like(x)

    with_guide = Settings(guidance=2.0)
    end = converged(with_guide, gauss, noise, None, guide)
    assert torch.equal(end, converged(Settings(guidance=2.0, w_stiff=1.0, steps=5), gauss, noise,
                                      None, guide))  # fmt: skip
    assert not torch.allclose(end, converged(Settings(), gauss, noise))


def test_the_ratio_and_its_error():
    draw = torch.Generator().manual_seed(0)
    plain = 1 + 0.1 * torch.rand(640, generator=draw, dtype=torch.float64)
    corrected = 0.5 * plain + 0.02 * torch.randn(640, generator=draw, dtype=torch.float64)
    value, error = ratio(corrected, plain)
    assert value == pytest.approx(corrected.mean().item() / plain.mean().item())
    expected = (corrected - value * plain).std().item() / math.sqrt(640) / plain.mean().item()
    assert error == pytest.approx(expected, rel=0.5)

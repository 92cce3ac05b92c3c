"""An independent solution of the sampling ODE: torchdiffeq's adaptive Dormand-Prince 5(4)."""

import torch
from torchdiffeq import odeint


@torch.no_grad()
def adaptive_solution(model, x, labels=None, sigma_max=80.0, sigma_min=0.002, tolerance=1e-5):
    """Solve dx/dsigma = (x - D)/sigma from x [B, ...] at sigma_max down to sigma_min."""

    def drift(sigma, state):
        denoised = model(state.float(), sigma.float(), labels)
        return (state - denoised.to(state.dtype)) / sigma.to(state.dtype)

    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    return odeint(drift, x, ends, rtol=tolerance, atol=tolerance, method="dopri5")[-1]

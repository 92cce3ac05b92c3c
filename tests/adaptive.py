"""An independent solution of the sampling ODE: torchdiffeq's adaptive Dormand-Prince 5(4)."""

import math

import torch
from torchdiffeq import odeint


@torch.no_grad()
def adaptive_solution(model, x, labels=None, sigma_max=80.0, sigma_min=0.002, tolerance=1e-5):
    """Solve dx/d(ln sigma) = x - D(x; sigma) from x [B, ...] at sigma_max down to sigma_min.

    In float64; the denoiser sees float32.
    """

    def field(log_sigma, state):
        denoised = model(state.float(), log_sigma.exp().float(), labels)
        return state - denoised.double()

    ends = torch.tensor([math.log(sigma_max), math.log(sigma_min)], dtype=torch.float64)
    return odeint(field, x.double(), ends, rtol=tolerance, atol=tolerance, method="dopri5")[-1]

"""Noise injection of EDM and EDM2."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Noise = Callable[[Tensor], Tensor]
"""(x [B, ...]) -> unit normal numbers [B, ...] of x's dtype and device."""


@dataclass(frozen=True)
class Churn:
    """Raise the noise level before a step and add the missing noise.

    Algorithm 2 of Karras et al. 2022: for S_min <= sigma <= S_max, sigma becomes
    sigma (1 + gamma) with gamma = min(S_churn / N, sqrt(2) - 1).

    EDM draws noise before every step and uses it only within [S_min, S_max]; EDM2 draws it only
    there. From one stream of random numbers they give different samples, so `every_step` says
    which. EDM also keeps the state in float64 (`Settings.state_dtype`).
    """

    gamma: float
    S_min: float
    S_max: float
    S_noise: float
    randn_like: Noise
    round_sigma: Callable[[Tensor], Tensor] | None = None  # to a level that the network knows
    every_step: bool = False  # EDM: draw noise outside [S_min, S_max] too, and drop it

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisier state [B, ...] and its noise level []."""
        if not self.S_min <= sigma <= self.S_max:
            if self.every_step:
                self.randn_like(x)
            return x, sigma
        raised = sigma + self.gamma * sigma
        if self.round_sigma is not None:
            raised = self.round_sigma(raised).to(sigma)
        noise = (raised**2 - sigma**2).sqrt() * self.S_noise * self.randn_like(x)
        return x + noise, raised

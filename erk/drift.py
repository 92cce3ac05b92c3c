"""The drift f(x; sigma) = (x - D(x; sigma)) / sigma, with model guidance inside, counted."""

from collections.abc import Callable

import torch
from torch import Tensor

from .point import Point

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x [B, ...] float32, sigma [] float32, labels) -> D(x; sigma) [B, ...]."""


class GuidedDrift:
    """The drift of a denoiser, or of two: D = D_guide + guidance (D_main - D_guide).

    Classifier-free guidance takes an unconditional network as `guide_model`, Autoguidance a
    weaker one; both see the same labels. With `interval` = (lo, hi) guidance acts for
    lo < sigma <= hi (Kynkaanniemi et al. 2024); outside, and at guidance 1, the guide is not
    called. `nfe` counts calls of the main network, `guide_nfe` those of the guide.
    """

    def __init__(
        self,
        model: Denoiser,
        labels: Tensor | None = None,
        guide_model: Denoiser | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
    ):
        if guidance != 1 and guide_model is None:
            raise ValueError(
                f"guidance {guidance:g} needs a guiding network: give one, or leave guidance at 1."
            )
        self.model, self.guide_model, self.labels = model, guide_model, labels
        self.guidance, self.interval = guidance, interval
        self.nfe = self.guide_nfe = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Point:
        return Point(x, (x - self.denoise(x, sigma)) / sigma, sigma)  # Eq. 1

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x; sigma) with model guidance, [B, ...] in x's dtype; the networks see float32."""
        seen, level = x.to(torch.float32), sigma.to(torch.float32)
        self.nfe += 1
        denoised = self.model(seen, level, self.labels).to(x.dtype)
        if self.guide_model is None or not self._guided_at(sigma):
            return denoised
        self.guide_nfe += 1
        return self.guide_model(seen, level, self.labels).to(x.dtype).lerp(denoised, self.guidance)

    def _guided_at(self, sigma: Tensor) -> bool:
        if self.guidance == 1:
            return False
        if self.interval is None:
            return True
        lo, hi = self.interval  # tensor comparisons: the bounds round as sigma does
        return bool(lo < sigma) and bool(sigma <= hi)

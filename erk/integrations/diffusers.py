"""ERK-Guid for users of diffusers: schedulers for their pipelines, and a pipeline for EDM2."""

from .schedulers import (
    ERKDPMSolverMultistepScheduler,
    ERKDPMSolverSinglestepScheduler,
    ERKHeunScheduler,
)

__all__ = [
    "ERKDPMSolverMultistepScheduler",
    "ERKDPMSolverSinglestepScheduler",
    "ERKHeunScheduler",
]

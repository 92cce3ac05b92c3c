"""ERK-Guid for diffusers: schedulers for existing pipelines, and a pipeline for EDM2."""

from erk.integrations.edm2_pipeline import EDM2Network, EDM2Pipeline
from erk.integrations.flow_scheduler import ERKFlowMatchHeunScheduler
from erk.integrations.schedulers import (
    ERKDPMSolverMultistepScheduler,
    ERKDPMSolverSinglestepScheduler,
    ERKHeunScheduler,
)

__all__ = [
    "EDM2Network",
    "EDM2Pipeline",
    "ERKDPMSolverMultistepScheduler",
    "ERKDPMSolverSinglestepScheduler",
    "ERKFlowMatchHeunScheduler",
    "ERKHeunScheduler",
]

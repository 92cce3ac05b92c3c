"""ERK-Guid: stiffness-aware diffusion sampling via embedded Runge-Kutta guidance.

The public names are loaded on first use, so that ``import erk`` costs no torch import.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from erk.api import animate as animate
    from erk.api import plot_trace as plot_trace
    from erk.api import sample as sample
    from erk.api import trajectory as trajectory
    from erk.calibration.calibrate import calibrate as calibrate
    from erk.generation.images import save_images as save_images
    from erk.method.drift import NonFiniteError as NonFiniteError
    from erk.method.guidance import erk_guid as erk_guid
    from erk.method.point import Point as Point
    from erk.method.point import Step as Step
    from erk.method.sampler import State as State
    from erk.method.sampler import Trace as Trace
    from erk.method.sampler import steps as steps
    from erk.method.settings import Settings as Settings
    from erk.models.adapters import from_denoiser as from_denoiser
    from erk.models.adapters import from_epsilon as from_epsilon
    from erk.models.adapters import from_flow as from_flow
    from erk.models.adapters import from_v as from_v
    from erk.models.model import Model as Model
    from erk.models.model import load_model as load_model
    from erk.models.noise import noise_and_labels as noise_and_labels

# The libraries of the Hugging Face hub read this on import: no telemetry.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "Model": ".models.model",
    "NonFiniteError": ".method.drift",
    "Point": ".method.point",
    "Settings": ".method.settings",
    "State": ".method.sampler",
    "Step": ".method.point",
    "Trace": ".method.sampler",
    "animate": ".api",
    "calibrate": ".calibration.calibrate",
    "erk_guid": ".method.guidance",
    "from_denoiser": ".models.adapters",
    "from_epsilon": ".models.adapters",
    "from_flow": ".models.adapters",
    "from_v": ".models.adapters",
    "load_model": ".models.model",
    "noise_and_labels": ".models.noise",
    "plot_trace": ".api",
    "sample": ".api",
    "save_images": ".generation.images",
    "steps": ".method.sampler",
    "trajectory": ".api",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'erk' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""ERK-Guid: stiffness-aware diffusion sampling via embedded Runge-Kutta guidance.

The public names are loaded on first use, so that ``import erk`` costs no torch import.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .adapters import from_denoiser as from_denoiser
    from .adapters import from_epsilon as from_epsilon
    from .adapters import from_flow as from_flow
    from .adapters import from_v as from_v
    from .jobs.noise import noise_and_labels as noise_and_labels
    from .models.model import Model as Model
    from .models.model import load_model as load_model
    from .sampler import sample as sample
    from .sampler import steps as steps

# The hub's libraries, which read this when they are imported, shall tell nobody what runs here.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "Model": ".models.model",
    "from_denoiser": ".adapters",
    "from_epsilon": ".adapters",
    "from_flow": ".adapters",
    "from_v": ".adapters",
    "load_model": ".models.model",
    "sample": ".sampler",
    "steps": ".sampler",
    "noise_and_labels": ".jobs.noise",
}
__all__ = [
    "Model", "from_denoiser", "from_epsilon", "from_flow", "from_v", "load_model",
    "noise_and_labels", "sample", "steps",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'erk' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

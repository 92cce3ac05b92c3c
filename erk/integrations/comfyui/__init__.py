"""ERK-Guid for ComfyUI: link or copy this folder into ComfyUI/custom_nodes.

The package `erk` must be importable there (docs/integrations.md). `erk_heun` and `erk_dpm2` are
added to the lists of samplers with default weights; the node "ERK-Guid sampler" sets the weights
for SamplerCustom. Without ComfyUI, importing this folder has no effect.
"""

from typing import Any

from erk.integrations.kdiffusion import SAMPLERS

WEIGHT = {"min": 0.0, "max": 100.0, "step": 0.01}


class ERKGuidSampler:
    """A SAMPLER with the weights of ERK-Guid."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """Return the node's inputs in ComfyUI's format."""
        return {
            "required": {
                "solver": (list(SAMPLERS),),
                "w_stiff": ("FLOAT", {"default": 1.0, **WEIGHT}),
                "w_con": ("FLOAT", {"default": 0.5, **WEIGHT}),
            }
        }

    def get_sampler(self, solver: str, w_stiff: float, w_con: float) -> tuple[Any]:
        """Return ComfyUI's object for a sampler."""
        from comfy.samplers import KSAMPLER  # type: ignore[import-not-found]

        return (KSAMPLER(SAMPLERS[solver], {"w_stiff": w_stiff, "w_con": w_con}),)


NODE_CLASS_MAPPINGS = {"ERKGuidSampler": ERKGuidSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"ERKGuidSampler": "ERK-Guid sampler"}


def register() -> bool:
    """Add the samplers to ComfyUI's lists, once; return False without ComfyUI."""
    try:
        from comfy import samplers  # type: ignore[import-not-found]
        from comfy.k_diffusion import sampling  # type: ignore[import-not-found]
    except ImportError:
        return False
    for name, function in SAMPLERS.items():
        setattr(sampling, f"sample_{name}", function)
        for known in (samplers.KSampler.SAMPLERS, samplers.KSAMPLER_NAMES):
            if name not in known:
                known.append(name)
    dropping = getattr(samplers.KSampler, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS", None)
    if dropping is not None:
        dropping.add("erk_dpm2")  # as dpm_2
    return True


register()

"""ERK-Guid for ComfyUI: link or copy this folder into ComfyUI/custom_nodes.

The package `erk` must be importable there (docs/integrations.md). `erk_heun` and `erk_dpm2` are
added to the lists of samplers with default weights. Three nodes return a sampler for SamplerCustom:
"ERK-Guid sampler" with any weights, "ERK-Guid auto" without weights, "ERK-Guid card" as a card of
erk calibrate says, with its noise levels. workflow.json is a graph with the node "ERK-Guid auto".
Without ComfyUI, importing this folder has no effect.
"""

from typing import Any

from erk.integrations.kdiffusion import SAMPLERS, card_sigmas, sample_erk_card

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
        return (_sampler(SAMPLERS[solver], w_stiff=w_stiff, w_con=w_con),)


class ERKGuidAuto:
    """A SAMPLER that corrects its solver without weights."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = ERKGuidSampler.CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """Return the node's inputs in ComfyUI's format."""
        return {"required": {"solver": (list(SAMPLERS),)}}

    def get_sampler(self, solver: str) -> tuple[Any]:
        """Return ComfyUI's object for a sampler."""
        return (_sampler(SAMPLERS[solver], erk="auto"),)


class ERKGuidCard:
    """The SAMPLER and the SIGMAS of a card."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "get_sampler"
    CATEGORY = ERKGuidSampler.CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """Return the node's inputs in ComfyUI's format."""
        return {"required": {"card": ("STRING", {"default": "card.json"})}}

    def get_sampler(self, card: str) -> tuple[Any, Any]:
        """Return ComfyUI's object for a sampler and the noise levels; ValueError for no card."""
        return _sampler(sample_erk_card, card=card), card_sigmas(card)


def _sampler(function: Any, **options: Any) -> Any:
    """Return ComfyUI's object for a sampler function with options."""
    from comfy.samplers import KSAMPLER  # type: ignore[import-not-found]

    return KSAMPLER(function, options)


NODE_CLASS_MAPPINGS = {
    "ERKGuidSampler": ERKGuidSampler,
    "ERKGuidAuto": ERKGuidAuto,
    "ERKGuidCard": ERKGuidCard,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ERKGuidSampler": "ERK-Guid sampler",
    "ERKGuidAuto": "ERK-Guid auto",
    "ERKGuidCard": "ERK-Guid card",
}


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

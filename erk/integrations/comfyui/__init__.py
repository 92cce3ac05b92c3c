"""ERK-Guid for ComfyUI: link or copy this folder into ComfyUI/custom_nodes.

The package `erk` must be importable there (docs/integrations.md). `erk_heun` and `erk_dpm2` are
added to the lists of samplers with default weights. Three nodes return a sampler for SamplerCustom:
"ERK-Guid sampler" with weights, "ERK-Guid auto" without weights, and "ERK-Guid card" with the
sampler and the noise levels of a card of erk calibrate. workflow.json is a graph with the node
"ERK-Guid auto". Without ComfyUI, importing this folder has no effect.
"""

import math
from typing import Any

from erk.calibration.card import open_card
from erk.integrations.kdiffusion import SAMPLERS, card_sigmas, sample_erk_card

WEIGHT = {"min": 0.0, "max": 100.0, "step": 0.01}
SOLVER = (
    list(SAMPLERS),
    {"tooltip": "erk_heun: Heun's method. erk_dpm2: DPM-Solver-2. Two evaluations per step."},
)
SAMPLER_TIP = "The sampler for SamplerCustom."


class ERKGuidSampler:
    """A SAMPLER with the weights of ERK-Guid."""

    DESCRIPTION = "Corrects each step of the solver with these weights."
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = (SAMPLER_TIP,)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """Return the node's inputs in ComfyUI's format."""
        w_stiff = {"default": 1.0, **WEIGHT, "tooltip": "Scale of the correction; 0 is off."}
        w_con = {
            "default": 0.5, **WEIGHT, "tooltip": "Stiffness above which a sample is corrected.",
        }  # fmt: skip
        weights = {"w_stiff": ("FLOAT", w_stiff), "w_con": ("FLOAT", w_con)}
        return {"required": {"solver": SOLVER, **weights}}

    def get_sampler(self, solver: str, w_stiff: float, w_con: float) -> tuple[Any]:
        """Return ComfyUI's object for a sampler."""
        return (_sampler(SAMPLERS[solver], w_stiff=w_stiff, w_con=w_con),)


class ERKGuidAuto:
    """A SAMPLER that corrects its solver without weights."""

    DESCRIPTION = "Corrects each step of the solver; there is nothing to choose."
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = (SAMPLER_TIP,)
    FUNCTION = "get_sampler"
    CATEGORY = ERKGuidSampler.CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """Return the node's inputs in ComfyUI's format."""
        return {"required": {"solver": SOLVER}}

    def get_sampler(self, solver: str) -> tuple[Any]:
        """Return ComfyUI's object for a sampler."""
        return (_sampler(SAMPLERS[solver], erk="auto"),)


class ERKGuidCard:
    """The SAMPLER and the SIGMAS of a card."""

    DESCRIPTION = (
        "The sampler of a card, the file that erk calibrate writes. Connect both outputs, and set "
        "cfg to the card's guidance, 1 if it has none."
    )
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    OUTPUT_TOOLTIPS = (SAMPLER_TIP, "The card's noise levels, which replace those of a scheduler.")
    FUNCTION = "get_sampler"
    CATEGORY = ERKGuidSampler.CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """Return the node's inputs in ComfyUI's format."""
        path = {
            "default": "card.json",
            "tooltip": "Path of the card; a relative one begins where ComfyUI was started.",
        }
        return {"required": {"card": ("STRING", path)}}

    @classmethod
    def VALIDATE_INPUTS(cls, card: str | None) -> bool | str:  # noqa: N802, ComfyUI's name
        """Return what is wrong with the card, before ComfyUI runs any node; True if nothing is."""
        try:
            if card is not None:  # None: from another node, not known yet
                open_card(card).check_host("ComfyUI")
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, card: str | None) -> str | float:  # noqa: N802, ComfyUI's name
        """Return the card's key: ComfyUI repeats a node whose file, not path, has changed."""
        return math.nan if card is None else open_card(card).key

    def get_sampler(self, card: str) -> tuple[Any, Any]:
        """Return ComfyUI's object for a sampler and the noise levels; ValueError for no card."""
        content = open_card(card)
        return _sampler(sample_erk_card, card=content), card_sigmas(content)


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

"""Infer the arguments of an EDM2 network from the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from erk.models import edm2
from erk.models.arguments import defaults_of


class Part(NamedTuple):
    """A network or encoder: the name of its class and its constructor arguments."""

    name: str
    kwargs: dict[str, Any]


ARGUMENTS = defaults_of((edm2.Precond, edm2.UNet, edm2.Block))
"""EDM2's arguments with their defaults, which all released networks use."""

DEFAULTED = ("sigma_data", "channels_per_head", "resample_filter", "label_balance",
             "concat_balance", "res_balance", "attn_balance", "clip_act")  # fmt: skip
"""Arguments that change the outputs of a network and cannot be inferred from shapes."""


def stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove a prefix that all names share ("network.", "module.") before EDM2's names."""
    prefix = next((k.removesuffix("unet.out_gain") for k in tensors if k.endswith("unet.out_gain")),
                  "")  # fmt: skip
    if not all(key.startswith(prefix) for key in tensors):
        return dict(tensors)
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def architecture_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Part:
    """Infer the EDM2 network that has these tensors.

    Arguments in the metadata take precedence; those that no shape determines have the defaults of
    the released networks. Raises ValueError if the tensors are not EDM2's or contradict an
    argument.
    """
    given = {name: value for name, value in metadata.items() if name in ARGUMENTS}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        kwargs = _inferred(shapes, given.get("model_channels"))
    except (LookupError, ValueError, ZeroDivisionError, TypeError):
        raise ValueError("its tensors are not those of an EDM2 network") from None
    kwargs["use_fp16"] = tensors["unet.out_conv.weight"].itemsize == 2
    per_head = given.get("channels_per_head", ARGUMENTS["channels_per_head"])
    attended = {shape[0] for name, shape in shapes.items() if name.endswith("attn_proj.weight")}
    if any(width % per_head for width in attended):
        raise ValueError(
            f"attention of {min(attended)} channels does not determine its heads: add "
            "channels_per_head"
        )
    return Part("Precond", kwargs | given)


def encoder_of(architecture: Part) -> Part:
    """Return the encoder of released networks of that shape. Raises ValueError if there is none."""
    channels, res = (architecture.kwargs.get(key) for key in ("img_channels", "img_resolution"))
    if channels == 3:
        return Part("StandardRGBEncoder", {})
    if (channels, res) == (4, 64):
        return Part("StabilityVAEEncoder", {})
    raise ValueError(f"samples of {channels} x {res} x {res} do not determine the encoder: add it")


def _inferred(shapes: Mapping[str, tuple[int, ...]], base: int | None) -> dict[str, Any]:
    """Infer EDM2's arguments from names and shapes.

    `base` is model_channels; None: the narrowest width if it divides all others. The file only has
    its products with the multipliers, so any common divisor describes the same network.
    """
    top = max(int(n) for name in shapes for n in re.findall(r"^unet\.enc\.(\d+)x", name))
    blocks = [n for n in shapes if re.fullmatch(r"unet\.enc\.\d+x\d+_block\d+\.emb_gain", n)]
    levels = sorted({int(re.findall(r"\d+", name)[0]) for name in blocks}, reverse=True)
    widths = [shapes[f"unet.enc.{r}x{r}_block0.conv_res1.weight"][0] for r in levels]
    noise, emb = shapes["unet.emb_fourier.freqs"][0], shapes["unet.emb_noise.weight"][0]
    base = base or (widths[0] if all(w % widths[0] == 0 for w in widths) else math.gcd(*widths))
    if any(width % base for width in (*widths, noise, emb)):
        base = math.gcd(*widths, noise, emb)
    return {
        "img_resolution": top,
        "img_channels": shapes["unet.out_conv.weight"][0],
        "label_dim": shapes["unet.emb_label.weight"][1] if "unet.emb_label.weight" in shapes else 0,
        "logvar_channels": shapes["logvar_fourier.freqs"][0],
        "model_channels": base,
        "channel_mult": [width // base for width in widths],
        "channel_mult_noise": None if noise == widths[0] else noise // base,
        "channel_mult_emb": None if emb == max(widths) else emb // base,
        "num_blocks": len(blocks) // len(levels),
        "attn_resolutions": [
            r for r in levels if f"unet.enc.{r}x{r}_block0.attn_qkv.weight" in shapes
        ],
    }

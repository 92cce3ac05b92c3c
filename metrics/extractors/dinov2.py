"""DINOv2 ViT-L/14 (Oquab et al. 2023): the network of FD-DINOv2, in two preprocessings."""

from typing import Any

import torch
from torch import Tensor, nn

from metrics.extractors import Outputs
from metrics.extractors.network import NetworkExtractor
from metrics.extractors.resize import bicubic, bicubic_pil, imagenet_normalise
from metrics.extractors.weights import Shapes, State, load_weights, shapes_of

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
ARCHITECTURE = "vit_large_patch14_dinov2"  # timm's name
SIZE = 224
WIDTH = 1024
TRAINED, USED = 37, 16  # patches per side of the position table: 518 / 14 in the file, 224 / 14


def output_sizes(name: str) -> dict[str, int]:
    """Return the numbers per image in each output."""
    return {"features": WIDTH}


def url() -> str:
    """Return the address of the published weights."""
    return URL


def load(
    name: str = "dinov2",
    device: str = "cpu",
    weights: str | None = None,
    offline: bool = False,
    architecture: str = ARCHITECTURE,
) -> NetworkExtractor:
    """The class token after the final norm, 1024 features.

    ``dinov2`` resizes as EDM2 does (float, may leave 0..255), ``dinov2-pil`` as dgm-eval (8-bit
    Pillow). architecture: another of timm's names goes with other ``weights``. Raises what
    ``load_weights`` raises.
    """
    state, digest = load_weights(weights, URL, shapes(architecture), offline)
    network = build(state, architecture).to(device)
    resize = bicubic_pil if name == "dinov2-pil" else bicubic
    return NetworkExtractor(
        name,
        state["norm.weight"].numel(),
        digest,
        lambda images: imagenet_normalise(resize(images, SIZE)),
        lambda x: Outputs(network(x)),
        device,
    )


def shapes(architecture: str) -> Shapes:
    """Keys and shapes of the published file: its position table is that of 518 pixels."""
    found = shapes_of(_empty(architecture))
    return found | {"pos_embed": (1, 1 + TRAINED**2, found["pos_embed"][2])}


def build(state: State, architecture: str) -> nn.Module:
    """[B, 3, 224, 224] -> class token [B, D]; ``state`` as published, see ``shapes``."""
    network = _empty(architecture)
    positions = resample_positions(state["pos_embed"])
    network.load_state_dict(state | {"pos_embed": positions}, assign=True)
    module: nn.Module = network.eval().requires_grad_(False)
    return module


def resample_positions(table: Tensor) -> Tensor:
    """Position table of 518 pixels [1, 1 + 37 * 37, D] -> that of 224 pixels [1, 1 + 16 * 16, D].

    The official network interpolates bicubically without antialiasing, by the factor 16.1 / 37
    (its "interpolate_offset"). timm's own resampling does neither and moves the features.
    """
    grid = table[:, 1:].unflatten(1, (TRAINED, TRAINED)).permute(0, 3, 1, 2)
    factor = (USED + 0.1) / TRAINED
    grid = nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def _empty(architecture: str) -> Any:
    import timm  # late: seconds

    with torch.device("meta"):  # no memory, and no random numbers of the caller's
        return timm.create_model(architecture, img_size=SIZE, num_classes=0)

"""VGG16 of torchvision, cut after its second hidden layer: precision and recall's network."""

from typing import Any

import torch
from torch import Tensor, nn

from metrics.extractors import Outputs
from metrics.extractors.network import NetworkExtractor, layout_of
from metrics.extractors.resize import bilinear_tf1, imagenet_normalise
from metrics.extractors.weights import Shapes, State, load_weights, shapes_of

SIZE = 224
WIDTH = 4096


def output_sizes(name: str) -> dict[str, int]:
    """Return the numbers per image in each output."""
    return {"features": WIDTH}


def load(
    name: str = "vgg16", device: str = "cpu", weights: str | None = None, offline: bool = False
) -> NetworkExtractor:
    """fc2 after its ReLU, 4096 features; preprocessing and layer are torch-fidelity's choice.

    Raises what ``load_weights`` raises.
    """
    state, digest = load_weights(weights, url(), shapes(), offline)
    network = build(state).to(device).to(memory_format=layout_of("vgg16", device))
    return NetworkExtractor(name, WIDTH, digest, prepare, lambda x: Outputs(network(x)), device)


def url() -> str:
    """Where torchvision publishes IMAGENET1K_V1."""
    from torchvision.models import VGG16_Weights  # late: seconds

    address: str = VGG16_Weights.IMAGENET1K_V1.url
    return address


def shapes() -> Shapes:
    """Keys and shapes of the published file."""
    return shapes_of(_empty())


def prepare(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 224, 224], ImageNet's mean and deviation removed."""
    x = imagenet_normalise(bilinear_tf1(images, SIZE))
    return x.contiguous(memory_format=layout_of("vgg16", x.device))


def build(state: State) -> nn.Module:
    """[B, 3, 224, 224] -> [B, 4096]; ``state`` is that of torchvision's whole network."""
    network = _empty()
    network.load_state_dict(state, assign=True)
    network.classifier = network.classifier[:5]  # fc1, ReLU, dropout, fc2, ReLU
    module: nn.Module = network.eval().requires_grad_(False)
    return module


def _empty() -> Any:
    from torchvision.models import vgg16  # late: seconds

    with torch.device("meta"):  # no memory, and no random numbers of the caller's
        return vgg16(weights=None, init_weights=False)

"""Inception-v3 of TensorFlow's 2015-12-05 release: the network of FID, IS and sFID.

Layers and state-dict keys are those of the conversion that torch-fidelity published. The network
is written once, in ``_trunk``, over a function that does one convolution (``Layer``): one such
function evaluates it, one notes the shapes of its weights, one sets random BatchNorm statistics.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.extractors import Outputs
from metrics.extractors.network import NetworkExtractor, layout_of
from metrics.extractors.resize import bilinear_tf1
from metrics.extractors.weights import Shapes, State, load_weights, random_state

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
SIZE = 299
WIDTH = 2048
CLASSES = 1008  # ImageNet's 1000 and unused ones
SPATIAL = 7  # channels of Mixed_6d's first branch ("mixed_6/conv"), ADM's choice for sFID
EPS = 1e-3  # of every BatchNorm
DETAIL = (4, 16, 64, 299)  # pixels per side of the random images that calibrate BatchNorm

GRID = 17  # pixels per side there

Kernel = tuple[int, int]


class Conv(NamedTuple):
    """One convolution without bias, its BatchNorm and ReLU."""

    key: str
    channels: int  # of the output
    kernel: Kernel
    stride: int = 1
    padding: Kernel = (0, 0)


Layer = Callable[[Tensor, Conv], Tensor]
Branch = Callable[..., Tensor]  # (x, (name, channels, kernel), ..., stride=1) -> x


def output_sizes(name: str) -> dict[str, int]:
    """Return the numbers per image in each output."""
    return {"features": WIDTH, "logits": CLASSES, "spatial": GRID**2 * SPATIAL}


def url() -> str:
    """Return the address of the published weights."""
    return URL


def load(
    name: str = "inception", device: str = "cpu", weights: str | None = None, offline: bool = False
) -> NetworkExtractor:
    """Load pool3 (2048 features), logits without bias (1008), sFID's features (17 * 17 * 7).

    Raises what ``load_weights`` raises.
    """
    state, digest = load_weights(weights, URL, shapes(), offline, calibrated_state)
    return NetworkExtractor(name, WIDTH, digest, prepare, build(state, device), device)


def prepare(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 299, 299] in -1..127/128."""
    x = bilinear_tf1(images, SIZE).sub_(128).div_(128)
    return x.contiguous(memory_format=layout_of("inception", x.device))


def build(state: State, device: str = "cpu") -> Callable[[Tensor], Outputs]:
    """The network as a function of [B, 3, 299, 299]; BatchNorm is folded into its kernels."""
    keys = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
    folded = {key: _fold(state, key, device) for key in keys}
    classes = state["fc.weight"].T.to(device)

    def layer(x: Tensor, conv: Conv) -> Tensor:
        kernel, bias = folded[conv.key]
        return F.conv2d(x, kernel, bias, conv.stride, conv.padding).relu_()

    def network(x: Tensor) -> Outputs:
        pool3, spatial = _trunk(x, layer)  # the latter flattened in TensorFlow's order, H W C
        return Outputs(pool3, pool3 @ classes, spatial.permute(0, 2, 3, 1).flatten(1))

    return network


def shapes() -> Shapes:
    """Keys and shapes of the published file."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(x: Tensor, conv: Conv) -> Tensor:
        weight = x.new_empty(conv.channels, x.shape[1], *conv.kernel)
        found[f"{conv.key}.conv.weight"] = tuple(weight.shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{conv.key}.bn.{part}"] = (conv.channels,)
        return F.conv2d(x, weight, None, conv.stride, conv.padding)

    _trunk(torch.empty(1, 3, SIZE, SIZE, device="meta"), layer)
    return found | {"fc.weight": (CLASSES, WIDTH), "fc.bias": (CLASSES,)}


@torch.no_grad()
def calibrated_state(shapes: Shapes, seed: int) -> State:
    """Random weights whose BatchNorms hold the statistics of random images, coarse to fine.

    Without them the features of all images nearly coincide. Biases near 1 keep most units open;
    near 0 the network would amplify rounding errors about ten times more.
    """
    state, generator = random_state(shapes, seed), torch.Generator().manual_seed(seed)

    def layer(x: Tensor, conv: Conv) -> Tensor:
        y = F.conv2d(x, state[f"{conv.key}.conv.weight"], None, conv.stride, conv.padding)
        norm, (var, mean) = f"{conv.key}.bn.", torch.var_mean(y, (0, 2, 3))
        state[norm + "running_mean"], state[norm + "running_var"] = mean, var
        gamma, beta = state[norm + "weight"], state[norm + "bias"].add_(1)
        return F.batch_norm(y, mean, var, gamma, beta, eps=EPS).relu_()

    images = [
        torch.randint(256, (1, 3, size, size), generator=generator, dtype=torch.uint8)
        for size in DETAIL
    ]
    _trunk(torch.cat([prepare(image) for image in images]), layer)
    return state


def _fold(state: State, key: str, device: str) -> tuple[Tensor, Tensor]:
    """Kernel and bias that do what the convolution ``key`` and its BatchNorm do, float32."""
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (state[f"{key}.bn.{name}"].double() for name in names)
    scale = gamma / (var + EPS).sqrt()
    kernel = (state[f"{key}.conv.weight"] * scale[:, None, None, None]).float()
    kernel = kernel.contiguous(memory_format=layout_of("inception", device))
    return kernel.to(device), (beta - mean * scale).float().to(device)


def _trunk(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """[B, 3, 299, 299] -> pool3 [B, 2048] and sFID's channels [B, 7, 17, 17]."""
    x = layer(x, Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2))
    x = layer(x, Conv("Conv2d_2a_3x3", 32, (3, 3)))
    x = layer(x, Conv("Conv2d_2b_3x3", 64, (3, 3), padding=(1, 1)))
    x = F.max_pool2d(x, 3, 2)
    x = layer(x, Conv("Conv2d_3b_1x1", 80, (1, 1)))
    x = layer(x, Conv("Conv2d_4a_3x3", 192, (3, 3)))
    x = F.max_pool2d(x, 3, 2)
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _mixed_5(x, _within(name, layer), pooled)
    x = _mixed_6a(x, _within("Mixed_6a", layer))
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
        x = _mixed_6(x, _within(name, layer), inner)
    spatial = x[:, :SPATIAL]
    x = _mixed_6(x, _within("Mixed_6e", layer), 192)
    x = _mixed_7a(x, _within("Mixed_7a", layer))
    x = _mixed_7(x, _within("Mixed_7b", layer), _average(x))
    x = _mixed_7(x, _within("Mixed_7c", layer), F.max_pool2d(x, 3, 1, 1))  # max: as released
    return x.mean((2, 3)), spatial


def _within(block: str, layer: Layer) -> Branch:
    """A function that applies convolutions (name, channels, kernel) of a block in a row.

    They keep the size; the last one may have stride 2 and is then not padded.
    """

    def branch(x: Tensor, *steps: tuple[str, int, Kernel], stride: int = 1) -> Tensor:
        for name, channels, kernel in steps:
            conv = Conv(f"{block}.{name}", channels, kernel)
            if stride > 1 and name == steps[-1][0]:
                conv = conv._replace(stride=stride)
            else:
                conv = conv._replace(padding=(kernel[0] // 2, kernel[1] // 2))
            x = layer(x, conv)
        return x

    return branch


def _average(x: Tensor) -> Tensor:
    """3x3 means over the pixels inside the image, as TensorFlow takes them."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _mixed_5(x: Tensor, branch: Branch, pooled: int) -> Tensor:
    three = [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3))]
    parts = [
        branch(x, ("branch1x1", 64, (1, 1))),
        branch(x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
        branch(x, *three, ("branch3x3dbl_3", 96, (3, 3))),
        branch(_average(x), ("branch_pool", pooled, (1, 1))),
    ]
    return torch.cat(parts, 1)


def _mixed_6a(x: Tensor, branch: Branch) -> Tensor:
    three = [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3))]
    parts = [
        branch(x, ("branch3x3", 384, (3, 3)), stride=2),
        branch(x, *three, ("branch3x3dbl_3", 96, (3, 3)), stride=2),
        F.max_pool2d(x, 3, 2),
    ]
    return torch.cat(parts, 1)


def _mixed_6(x: Tensor, branch: Branch, inner: int) -> Tensor:
    kernels = [(1, 1), (7, 1), (1, 7), (7, 1)]
    double = [(f"branch7x7dbl_{i}", inner, kernel) for i, kernel in enumerate(kernels, 1)]
    single = [("branch7x7_1", inner, (1, 1)), ("branch7x7_2", inner, (1, 7))]
    parts = [
        branch(x, ("branch1x1", 192, (1, 1))),
        branch(x, *single, ("branch7x7_3", 192, (7, 1))),
        branch(x, *double, ("branch7x7dbl_5", 192, (1, 7))),
        branch(_average(x), ("branch_pool", 192, (1, 1))),
    ]
    return torch.cat(parts, 1)


def _mixed_7a(x: Tensor, branch: Branch) -> Tensor:
    kernels = [(1, 1), (1, 7), (7, 1)]
    seven = [(f"branch7x7x3_{i}", 192, kernel) for i, kernel in enumerate(kernels, 1)]
    parts = [
        branch(x, ("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3)), stride=2),
        branch(x, *seven, ("branch7x7x3_4", 192, (3, 3)), stride=2),
        F.max_pool2d(x, 3, 2),
    ]
    return torch.cat(parts, 1)


def _mixed_7(x: Tensor, branch: Branch, pooled: Tensor) -> Tensor:
    single = branch(x, ("branch3x3_1", 384, (1, 1)))
    double = branch(x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
    parts = [
        branch(x, ("branch1x1", 320, (1, 1))),
        branch(single, ("branch3x3_2a", 384, (1, 3))),
        branch(single, ("branch3x3_2b", 384, (3, 1))),
        branch(double, ("branch3x3dbl_3a", 384, (1, 3))),
        branch(double, ("branch3x3dbl_3b", 384, (3, 1))),
        branch(pooled, ("branch_pool", 192, (1, 1))),
    ]
    return torch.cat(parts, 1)

"""Small convolutional classifiers as extractors: rows of configs/extractors.yaml."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import safetensors.torch
import torch
from pydantic import Strict
from torch import Tensor, nn

from erk.io.config import read_config
from erk.io.files import read_hashed, read_regular
from erk.io.resources import data
from erk.io.untrusted import parse_json
from erk.runtime.memory import without_weights
from metrics.extractors import Outputs
from metrics.extractors.network import as_float32, computing
from metrics.extractors.weights import is_random, random_weights, shapes_of

Integer = Annotated[int, Strict()]


@dataclass(frozen=True)
class ClassifierRow:
    """One row of configs/extractors.yaml."""

    weights: str  # a .safetensors in checkpoints/, its card (.json) beside it
    channels: Integer
    size: Integer  # pixels
    levels: Integer  # grey levels above 0 to which pixels are rounded

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @property
    def path(self) -> Path:
        """The file of weights that comes with the code."""
        return data("checkpoints") / self.weights


class Classifier(nn.Module):
    """Three convolutions and a hidden layer, whose ReLU outputs are the features.

    Parameters
    ----------
    width
        Channels of the first convolution; the others have twice as many.
    features, classes
        Sizes of the hidden layer and of the output.
    channels, size
        Channels, and height and width, of the images.
    pools
        Convolutions (1 to 3) that are followed by max pooling by 2.
    """

    def __init__(
        self,
        width: int,
        features: int,
        classes: int,
        channels: int = 1,
        size: int = 8,
        pools: Sequence[int] = (2,),
    ) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (size // 2 ** len(self.pools)) ** 2, features)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, S, S] in -1..1 -> features [B, D], logits [B, K]."""
        for number, convolution in enumerate((self.conv1, self.conv2, self.conv3), start=1):
            x = convolution(x).relu()
            if number in self.pools:
                x = nn.functional.max_pool2d(x, 2)
        features = self.hidden(x.flatten(1)).relu()
        return features, self.out(self.dropout(features))


class ClassifierExtractor(NamedTuple):
    """A classifier as an Extractor of its features and logits."""

    name: str
    feature_dim: int
    classes: int
    sha256: str
    row: ClassifierRow
    network: nn.Module
    device: str
    precision: str = "fp32"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Compute features and logits of images uint8 [B, C, S, S]; ValueError for others."""
        shape = (self.row.channels, self.row.size, self.row.size)
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"the {self.name} extractor takes {_described(shape, torch.uint8)}, not "
                f"{_described(images.shape[1:], images.dtype)}: choose another --protocol, such as "
                f"{self._other(images.shape[1:])}"
            )
        with computing(self.precision, self.device):
            x = normalise(images.to(self.device), self.row.levels)
            return as_float32(Outputs(*self.network(x)))

    def _other(self, shape: Sequence[int]) -> str:
        """Name another extractor, and its protocol, for images [C, H, W], or one that fits all."""
        rows = known_classifiers().items()
        fitting = [name for name, row in rows if (row.channels, row.size, row.size) == shape]
        return next((name for name in fitting if name != self.name), "torch-fidelity")


def normalise(images: Tensor, levels: int) -> Tensor:
    """Round uint8 0..255 to levels 0..levels, level = round(v * levels / 255); scale to -1..1.

    Real and generated images pass the same quantiser.
    """
    return (images.float() * (levels / 255)).round() / (levels / 2) - 1


def _described(shape: Sequence[int], dtype: torch.dtype) -> str:
    """Say which images [C, H, W] are, such as "grey images of 8x8 pixels (uint8)"."""
    kind = str(dtype).removeprefix("torch.")
    if len(shape) != 3:
        return f"{kind} with {len(shape) + 1} dimensions"
    channels, height, width = shape
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    return f"{colour} images of {height}x{width} pixels ({kind})"


@functools.cache
def known_classifiers() -> dict[str, ClassifierRow]:
    """Return the rows of configs/extractors.yaml by name."""
    return read_config(data("configs") / "extractors.yaml", dict[str, ClassifierRow])


def output_sizes(name: str) -> dict[str, int]:
    """Return the numbers per image in each output, from the card."""
    card, _ = _card(known_classifiers()[name].path)
    kwargs = card["architecture"]["kwargs"]
    return {"features": kwargs["features"], "logits": kwargs["classes"]}


def url() -> None:
    """Weights of classifiers come with the code."""


def load(
    name: str, device: str = "cpu", weights: str | Path | None = None, offline: bool = False
) -> ClassifierExtractor:
    """Read a classifier from a safetensors file with a JSON card beside it, or "random:SEED".

    weights: None for the file of the row ``name``, which comes with the code; nothing is ever
    downloaded. Raises FileNotFoundError if a file is missing, ValueError if they do not belong
    together.
    """
    row = known_classifiers()[name]
    source = str(weights or row.path)
    card, content = _card(row.path if is_random(source) else Path(source))
    try:
        network = _empty(row, card["architecture"]["kwargs"])
        state = {} if is_random(source) else safetensors.torch.load(content)
    except Exception as error:  # a file may give the constructor any arguments
        raise ValueError(f"{source} and its card are no classifier: {error}") from error
    digest = card["sha256"]
    if is_random(source):
        state, digest = random_weights(source, shapes_of(network))
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit the classifier of its card: {error}") from error
    network.eval().requires_grad_(False).to(device)
    features, classes = network.out.in_features, network.out.out_features
    return ClassifierExtractor(name, features, classes, digest, row, network, device)


def _empty(row: ClassifierRow, kwargs: dict[str, Any]) -> Classifier:
    with without_weights():  # no random initialisation: the caller's seed stays as it is
        return Classifier(**kwargs, channels=row.channels, size=row.size)


def _card(weights: Path) -> tuple[dict[str, Any], bytes]:
    """Read a file of weights and the card beside it, which must describe this very file."""
    file = weights.with_suffix(".json")
    for path in (weights, file):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: get it from git or train it again")
    try:
        card: dict[str, Any] = parse_json(read_regular(file))
        if not isinstance(card, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ValueError(f"{file} is not a card in JSON: get it from git again") from error
    content, digest = read_hashed(weights)
    if digest != card.get("sha256"):
        raise ValueError(
            f"{weights} is not the file that its card describes (sha256 {digest[:8]}): "
            "get both from git or train it again"
        )
    return card, content

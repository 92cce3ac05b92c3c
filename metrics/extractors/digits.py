"""The embedded judge: a small convolutional classifier of scikit-learn's 8x8 digits."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from erk.io.download import sha256_of
from erk.io.resources import data
from erk.io.untrusted import parse_json
from erk.runtime.memory import without_weights
from metrics.extractors import Features
from metrics.extractors.network import as_float32, computing
from metrics.extractors.weights import is_random, random_weights, shapes_of

WEIGHTS = data("checkpoints") / "digits-classifier.safetensors"
LEVELS = 16  # a digit's pixel is an integer 0..16


class DigitsClassifier(nn.Module):
    """Three convolutions and a hidden layer, whose ReLU outputs are the features."""

    def __init__(self, width: int = 16, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * 4 * 4, features)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 1, 8, 8] in -1..1 -> features [B, 64], logits [B, 10]."""
        x = self.conv2(self.conv1(x).relu()).relu()
        x = self.conv3(nn.functional.max_pool2d(x, 2)).relu()
        features = self.hidden(x.flatten(1)).relu()
        return features, self.out(self.dropout(features))


class DigitsExtractor(NamedTuple):
    """The classifier as an Extractor of 64 features and 10 logits."""

    name: str
    feature_dim: int
    sha256: str
    network: nn.Module
    device: str
    precision: str = "fp32"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """images uint8 [B, 1, 8, 8], 0..255; raises ValueError for any other image."""
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"the digits extractor takes uint8 images [B, 1, 8, 8], not {images.dtype} "
                f"{list(images.shape)}: measure 8x8 grey images with it"
            )
        with computing(self.precision, self.device):
            return as_float32(Features(*self.network(normalise(images.to(self.device)))))


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1 on the 17 levels of the real digits.

    Real and generated images so pass the same quantiser: level = round(v * 16 / 255).
    """
    return (images.float() * (LEVELS / 255)).round() / (LEVELS / 2) - 1


def load(
    name: str = "digits",
    device: str = "cpu",
    weights: str | Path | None = None,
    offline: bool = False,
) -> DigitsExtractor:
    """Read the classifier from a safetensors file with a JSON card beside it, or "random:SEED".

    weights: None for ``WEIGHTS``, which comes with this repository; nothing is ever downloaded.
    Raises FileNotFoundError if a file is missing, ValueError if they do not belong together.
    """
    source = str(weights or WEIGHTS)
    if is_random(source):
        network = _empty()
        state, digest = random_weights(source, shapes_of(network))
    else:
        card = _card(Path(source))
        try:
            network, digest = _empty(**card["architecture"]["kwargs"]), card["sha256"]
            state = load_file(source)
        except Exception as error:  # a file may give the constructor any arguments
            raise ValueError(f"{source} and its card are no classifier: {error}") from error
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit the classifier of its card: {error}") from error
    network.eval().requires_grad_(False).to(device)
    return DigitsExtractor(name, network.out.in_features, digest, network, device)


def _empty(**kwargs: int) -> DigitsClassifier:
    with without_weights():  # no random initialisation: the caller's seed stays as it is
        return DigitsClassifier(**kwargs)


def _card(weights: Path) -> dict[str, Any]:
    """What stands beside the file of weights, after a check that it is about this very file."""
    for file in (weights, weights.with_suffix(".json")):
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: get it from git or run python -m scripts.train.classifier"
            )
    file = weights.with_suffix(".json")
    try:
        card: dict[str, Any] = parse_json(file.read_bytes())
        if not isinstance(card, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ValueError(f"{file} is not a card in JSON: get it from git again") from error
    if (digest := sha256_of(weights)) != card.get("sha256"):
        raise ValueError(
            f"{weights} is not the file its card describes (sha256 {digest[:8]}): "
            "run python -m scripts.train.classifier"
        )
    return card

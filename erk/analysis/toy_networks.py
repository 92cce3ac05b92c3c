"""Small networks of the toy's two classes, for guidance that needs networks: CFG, Autoguidance."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from erk.io.files import read_hashed, read_regular
from erk.io.resources import data
from erk.io.untrusted import parse_json
from erk.method.point import level_for

CHECKPOINTS = data("checkpoints")
SIGMA_DATA = 0.5
ADVICE = "get it from git, or train it (python -m scripts.train.toy)"


class ToyDenoiser(nn.Module):
    """D(x; sigma) of 2-D data: a plain MLP in EDM's preconditioning (Karras et al. 2022, Table 1).

    With `label_dim` 0 the network is unconditional and ignores labels.
    """

    def __init__(self, width: int = 128, layers: int = 3, label_dim: int = 2) -> None:
        super().__init__()
        self.label_dim = label_dim
        sizes = [3 + label_dim, *[width] * layers]
        self.hidden = nn.ModuleList(
            nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)
        )
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Return D(x; sigma) [B, 2] for x [B, 2] float32, sigma [] or [B], one-hot labels [B, C].

        Raises ValueError if a conditional network gets no labels, or labels of another shape.
        """
        level = level_for(x, torch.as_tensor(sigma, dtype=x.dtype)).expand(len(x), 1)
        size = (level**2 + SIGMA_DATA**2).sqrt()
        inputs = [x / size, level.log() / 4]
        if self.label_dim:
            shape = None if labels is None else [*labels.shape]
            if labels is None or shape != [len(x), self.label_dim]:
                raise ValueError(
                    "this toy network needs one-hot labels of the shape "
                    f"{[len(x), self.label_dim]}, not {shape}."
                )
            inputs.append(labels.to(x.dtype))
        features = torch.cat(inputs, 1)
        for layer in self.hidden:
            features = nn.functional.silu(layer(features))
        return SIGMA_DATA**2 / size**2 * x + level * SIGMA_DATA / size * self.out(features)


def load_network(name: str, folder: Path = CHECKPOINTS) -> ToyDenoiser:
    """Load the network `folder`/`name`.safetensors for inference.

    Raises FileNotFoundError if it or its metadata is missing, ValueError if they do not fit.
    """
    metadata, path = read_metadata(name, folder), folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {ADVICE}.")
    content, sha256 = read_hashed(path)
    if sha256 != metadata.get("sha256"):
        raise ValueError(f"{path} does not have the sha256 in its metadata: {ADVICE}.")
    with torch.device("meta"):  # no random initialisation: the caller's seed stays as it is
        network = ToyDenoiser(**metadata["architecture"]["kwargs"])
    network.load_state_dict(load(content), assign=True)
    return network.float().eval().requires_grad_(False)


def read_metadata(name: str, folder: Path = CHECKPOINTS) -> dict[str, Any]:
    """Read a network's architecture, sha256 and training. FileNotFoundError or ValueError."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {ADVICE}.")
    try:
        metadata = parse_json(read_regular(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {ADVICE}.") from error
    if not isinstance(metadata, dict) or "kwargs" not in metadata.get("architecture", {}):
        raise ValueError(f"{path} names no architecture: {ADVICE}.")
    return metadata

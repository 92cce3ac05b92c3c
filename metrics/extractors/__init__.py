"""Feature extractors by name: each brings its input format, its weights and their hash."""

import functools
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from erk.io.download import fetch
from erk.io.missing import missing_files, name_missing
from erk.method.arguments import require
from erk.runtime.distributed import check_device

_NETWORKS = {  # name -> module with OUTPUTS, url() and load(name, device, weights, offline)
    "inception": "metrics.extractors.inception",
    "dinov2": "metrics.extractors.dinov2",
    "dinov2-pil": "metrics.extractors.dinov2",
    "vgg16": "metrics.extractors.vgg16",
}
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
FIELDS = ("features", "logits", "spatial")


class Outputs(NamedTuple):
    """What an extractor computes from a batch of images."""

    features: Tensor  # [B, D] float32
    logits: Tensor | None = None  # [B, K] float32; None: the network is no classifier
    spatial: Tensor | None = None  # [B, S] float32; only Inception: the features of ADM's sFID


class Extractor(Protocol):
    """A network with its preprocessing: images uint8 [B, C, H, W] -> Outputs."""

    @property
    def name(self) -> str: ...
    @property
    def feature_dim(self) -> int: ...
    @property
    def sha256(self) -> str: ...  # of the file of weights, or "random:SEED"
    @property
    def precision(self) -> str: ...  # of products and convolutions: one of ``PRECISIONS``

    def __call__(self, images: Tensor) -> Outputs: ...


def check_extractors(extractors: Any) -> None:
    """Raise ValueError unless these are extractors by name."""
    expected = "a dictionary, name -> load_extractor(name)"
    require(isinstance(extractors, Mapping), "extractors", expected, extractors)


def extractor_names() -> tuple[str, ...]:
    """Return every name that ``load_extractor`` takes."""
    from metrics.extractors.classifier import known_classifiers

    return (*_NETWORKS, *known_classifiers())


def load_extractor(
    name: str,
    device: str = "cpu",
    weights: str | None = None,
    offline: bool = False,
    precision: str = "fp32",
) -> Extractor:
    """Build a feature extractor; its outputs stay on its device.

    Parameters
    ----------
    name
        inception, dinov2, dinov2-pil, vgg16 or a row of configs/extractors.yaml.
    device
        Device, as PyTorch names it.
    weights
        None for the published file, downloaded once into the cache; a state dict (.pth,
        .safetensors) with the same keys; or "random:SEED", for tests only, which the extractor's
        ``sha256`` repeats.
    offline
        Never download.
    precision
        fp32, tf32 (CUDA only), fp16 or bf16; references are computed in fp32.

    Raises
    ------
    ValueError
        An unknown name or precision, or weights that are damaged or do not fit.
    OSError
        Weights that are missing or cannot be downloaded.
    """
    module = _module(name)
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    check_device(device)
    loaded = module.load(name, device, weights, offline)
    extractor: Extractor = loaded._replace(precision=precision)
    return extractor


def output_sizes(name: str) -> dict[str, int]:
    """Return the numbers per image in each output of an extractor, without loading it."""
    sizes: dict[str, int] = _module(name).output_sizes(name)
    return sizes


def weights_url(name: str) -> str | None:
    """Return the address of an extractor's published weights; None: they come with the code."""
    address: str | None = _module(name).url()
    return address


def download_weights(names: Iterable[str], offline: bool = False, trial: bool = True) -> None:
    """Download the published weights of extractors that are not in the cache, before any is loaded.

    Parameters
    ----------
    names
        Extractors, as for `load_extractor`.
    offline
        Never download.
    trial
        Whether the error says how to try a command with random weights instead.

    Raises
    ------
    OSError
        Weights that are missing or cannot be downloaded.
    """
    urls = {name: weights_url(name) for name in names}
    try:
        name_missing(urls.values(), offline)
        for url in missing_files(urls.values()).values():
            fetch(url, offline=offline)
    except (ConnectionError, FileNotFoundError) as error:
        if not trial or error.errno is not None:
            raise
        missing = missing_files(urls.values()).values()
        random = " ".join(f"--weights {name}=random:0" for name in urls if urls[name] in missing)
        raise type(error)(
            f"{error}; for a trial whose numbers measure nothing, add {random} "
            "--allow-random-weights"
        ) from None


@functools.cache
def main_extractors() -> dict[int, str]:
    """Return number of features -> name, where a single extractor has that many."""
    names: dict[int, list[str]] = {}
    for name in extractor_names():
        names.setdefault(output_sizes(name)["features"], []).append(name)
    return {size: alone[0] for size, alone in names.items() if len(alone) == 1}


def _module(name: str) -> ModuleType:
    require(isinstance(name, str), "name", "the name of an extractor", name)
    if name in _NETWORKS:
        return import_module(_NETWORKS[name])
    if name not in extractor_names():
        raise ValueError(
            f"there is no extractor {name!r}: choose one of {', '.join(extractor_names())}"
        )
    return import_module("metrics.extractors.classifier")

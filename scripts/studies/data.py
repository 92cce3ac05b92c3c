"""What the studies run on: embedded networks and three mixtures with closed-form denoisers."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import erk
from erk.analysis import toy
from erk.calibration.problem import Problem, problem_for
from erk.method.settings import Settings
from erk.models.presets import find_preset
from metrics.evaluation import Evaluation, evaluate_features, paired_differences
from metrics.extractors import load_extractor
from metrics.features import extract
from metrics.jackknife import Difference, group_of
from metrics.protocols import find_protocol
from metrics.references import load_reference, real_images

NETWORKS = ("digits", "digits-cfg", "digits-autog")
MIXTURES = ("mixture", "toy")
SPREAD = 0.1  # standard deviation of the mixture's Gaussians, one at every digit
PROJECTIONS = 64  # of sliced distances
COMPONENTS, DIMENSION, RANK, DECAY = 10, 48, 12, 2.0  # of `spectra`


class Data(NamedTuple):
    """A denoiser, its guide, and the data of a mixture that samples are compared with."""

    name: str
    model: Any
    guide_model: Any
    guidance: float
    sigma_max: float
    draw: Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]  # seeds -> noise, labels
    real: Tensor  # of a mixture, [N, D]

    def settings(self, **settings: Any) -> Settings:
        """Return sampling settings with this data's guidance and highest noise level."""
        return Settings(guidance=self.guidance, sigma_max=self.sigma_max, **settings)

    def problem(self, settings: Settings) -> Problem:
        """Return the networks with a plain solver."""
        return problem_for(self.model, settings, self.guide_model, self.draw)

    @property
    def networks(self) -> list[str | None]:
        """The sha256 of the network and of its guide; None for a closed form or no guide."""
        return [getattr(one, "sha256", None) for one in (self.model, self.guide_model)]


@cache
def load(name: str) -> Data:
    """Load data by name: a preset of configs/models.yaml, one of MIXTURES, or spectra."""
    if name == "spectra":
        denoise, clean = spectra(torch.Generator().manual_seed(2))
        return Data(name, denoise, None, 1.0, 80.0, _noise((DIMENSION,)), clean)
    if name == "toy":
        clean, _ = toy.draw_samples(toy.tree("A"), 4096, torch.Generator().manual_seed(1))
        return Data(name, toy.denoiser(toy.tree("A")), None, 1.0, 5.0, _noise((2,)), clean.float())
    if name == "mixture":
        real = (real_images("digits")[0].flatten(1) / 255 * 16 / 8 - 1 + 0.3895) / 0.7520 * 0.5
        return Data(name, mixture(real, SPREAD), None, 1.0, 80.0, _noise((64,)), real)
    preset = find_preset(name)
    model = erk.load_model(preset.net)
    guide = None if preset.gnet is None else erk.load_model(preset.gnet)

    def draw(seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        return erk.noise_and_labels(seeds, model)

    return Data(name, model, guide, preset.guidance, 80.0, draw, torch.empty(0))


def _noise(shape: tuple[int, ...]) -> Callable[[Sequence[int]], tuple[Tensor, None]]:
    def draw(seeds: Sequence[int]) -> tuple[Tensor, None]:
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(rows), None

    return draw


def mixture(means: Tensor, spread: float) -> Any:
    """Return the exact denoiser of equally many isotropic Gaussians at `means` [K, D]."""
    square = means.square().sum(1)

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        variance = spread**2 + sigma**2
        shares = ((x @ means.T - square / 2) / variance).softmax(1)
        return (spread**2 * x + sigma**2 * (shares @ means)) / variance

    return denoise


def spectra(draw: torch.Generator) -> tuple[Any, Tensor]:
    """Return the exact denoiser of a mixture of low-rank Gaussians, and 4096 of its samples.

    COMPONENTS Gaussians of rank RANK in DIMENSION dimensions, with random means and subspaces and
    variances j^-DECAY along their axes; means and axes have half of the total variance each, which
    is 0.25 per dimension.
    """
    means = torch.randn(COMPONENTS, DIMENSION, generator=draw) * 0.125**0.5
    axes = torch.linalg.qr(torch.randn(COMPONENTS, DIMENSION, RANK, generator=draw)).Q
    variances = torch.arange(1, RANK + 1) ** -DECAY
    variances = variances * (0.125 * DIMENSION / variances.sum())

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        away = x[:, None] - means  #                                        [B, K, D]
        along = torch.einsum("bkd,kdr->bkr", away, axes)
        off = away - torch.einsum("bkr,kdr->bkd", along, axes)
        square = (along.square() / (variances + sigma**2)).sum(2) + off.square().sum(2) / sigma**2
        shrunk = along * (variances / (variances + sigma**2))
        ends = means + torch.einsum("bkr,kdr->bkd", shrunk, axes)
        return torch.einsum("bk,bkd->bd", (-square / 2).softmax(1), ends)

    which = torch.randint(COMPONENTS, (4096,), generator=draw)
    normal = torch.randn(len(which), RANK, generator=draw) * variances.sqrt()
    return denoise, means[which] + torch.einsum("br,bdr->bd", normal, axes[which])


@cache
def _evaluator(judge: str) -> tuple[Any, Any]:
    extractors = {judge: load_extractor(judge, "cpu")}
    return extractors, load_reference(judge, extractors)


def identity(data: Data) -> list[Any]:
    """Return what defines a closed form or, of a network, what its samples are measured with."""
    if data.networks[0] is None:
        return [data.name, COMPONENTS, DIMENSION, RANK, DECAY, SPREAD, PROJECTIONS]
    judge = data.name.split("-")[0]
    extractors, reference = _evaluator(judge)
    return [extractors[judge].sha256, reference.sha256]


def fd(data: Data, x0: Tensor, blocks: int, classes: Sequence[int] | None = None) -> Evaluation:
    """Measure FD of a network's samples, with one replicate per block of seeds left out.

    With the classes asked for, accuracy too. The judge is the classifier of the network's data.
    """
    judge = data.name.split("-")[0]
    extractors, reference = _evaluator(judge)
    features = extract([data.model.decode(x0)], extractors)
    protocol = find_protocol(judge).only("fd" if classes is None else "fd,accuracy")
    return evaluate_features(
        features, protocol, reference, labels=classes, groups=blocks, in_seed_order=True
    )


def change_of_fd(corrected: Evaluation, plain: Evaluation) -> Difference:
    """Compute FD corrected - plain of the same seeds."""
    return paired_differences(corrected, plain)["fd"]


def sliced_w1(data: Data, x0: Tensor, blocks: int) -> tuple[float, list[float]]:
    """Compute sliced W1 of samples to the data, and without each block of seeds."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(data.real[0].numel(), PROJECTIONS, generator=draw)
    directions = directions / directions.norm(dim=0)
    levels = (torch.arange(512) + 0.5) / 512
    points = x0.flatten(1).float() @ directions
    expected = (data.real @ directions).quantile(levels, 0)
    groups = group_of(len(points), blocks)
    sets = [points, *(points[groups != g] for g in range(blocks))]
    values = [(rows.quantile(levels, 0) - expected).abs().mean().item() for rows in sets]
    return values[0], values[1:]

"""What studies of solvers run on: the digits networks and two mixtures known in closed form."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import erk
from erk.analysis import toy
from erk.calibration.problem import Problem, problem_for
from erk.generation.job import plain
from erk.io.download import sha256_of
from erk.method.settings import Settings
from erk.models.presets import find_preset
from erk.runtime.provenance import provenance
from metrics.evaluation import Result, measure
from metrics.extraction import extract
from metrics.extractors import load_extractor
from metrics.jackknife import Difference, group_of
from metrics.protocols import Measure, Protocol
from metrics.references import load_reference, real_digits
from metrics.report import differences

NETWORKS = ("digits", "digits-cfg", "digits-autog")
MIXTURES = ("mixture", "toy")
SPREAD = 0.1  # standard deviation of the mixture's Gaussians, one at every digit
PROJECTIONS = 64  # of sliced distances
FD = Protocol("fd", (Measure("fd", "digits", ("fd",)),), "FD on 64 features of a classifier")

CODE = (*(Path("erk") / f"{name}.py" for name in ("corrections", "solvers", "weights", "schedule")),
        *(Path("erk/study") / f"{name}.py" for name in ("calibration", "solver_error", "toy")),
        Path("scripts/studies/study_data.py"))  # fmt: skip
"""What rows of a study come from; a row made by other code is made again."""
ORIGIN = ("key", "made_by")  # of a row: what it depends on, and its command and commit
Row = dict[str, Any]


class Data(NamedTuple):
    """A denoiser, its guide, and how samples of it are judged."""

    name: str
    model: Any
    guide: Any
    guidance: float
    sigma_max: float
    start: Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]  # seeds -> noise, labels
    real: Tensor  # what samples should be distributed as, [N, D]

    def plan(self, **settings: Any) -> Settings:
        """Sampling settings with this data's guidance and highest noise level."""
        return Settings(guidance=self.guidance, sigma_max=self.sigma_max, **settings)

    def problem(self, settings: Settings) -> Problem:
        """The networks with a plain solver."""
        return problem_for(self.model, settings, self.guide, self.start)


@cache
def load(name: str) -> Data:
    """Data by name: one of NETWORKS or MIXTURES."""
    real = (real_digits()[0].flatten(1) / 255 * 16 / 8 - 1 + 0.3895) / 0.7520 * 0.5
    if name == "toy":
        clean, _ = toy.draw_samples(toy.tree("A"), 4096, torch.Generator().manual_seed(1))
        return Data(name, toy.denoiser(toy.tree("A")), None, 1.0, 5.0, _plain((2,)), clean.float())
    if name == "mixture":
        return Data(name, mixture(real, SPREAD), None, 1.0, 80.0, _plain((64,)), real)
    preset = find_preset(name)
    model = erk.load_model(preset.net)
    guide = None if preset.gnet is None else erk.load_model(preset.gnet)

    def start(seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        return erk.noise_and_labels(seeds, model)

    return Data(name, model, guide, preset.guidance, 80.0, start, real)


def _plain(shape: tuple[int, ...]) -> Callable[[Sequence[int]], tuple[Tensor, None]]:
    def start(seeds: Sequence[int]) -> tuple[Tensor, None]:
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(draws), None

    return start


def mixture(means: Tensor, spread: float) -> Any:
    """The exact denoiser of equally many isotropic Gaussians at `means` [K, D]."""
    square = means.square().sum(1)

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        variance = spread**2 + sigma**2
        shares = ((x @ means.T - square / 2) / variance).softmax(1)
        return (spread**2 * x + sigma**2 * (shares @ means)) / variance

    return denoise


@cache
def _judge() -> tuple[Any, Any]:
    judges = {"digits": load_extractor("digits", "cpu")}
    return judges, load_reference("digits", judges)


def fd(data: Data, x0: Tensor, blocks: int) -> Result:
    """FD of a network's samples with replicates, one block of seeds left out each."""
    judges, reference = _judge()
    return measure(extract([data.model.decode(x0)], judges), FD, reference, groups=blocks)


def change_of_fd(own: Result, plain: Result) -> Difference:
    """FD own - plain of the same seeds."""
    return differences(own, plain)["fd"]


def sliced(data: Data, x0: Tensor, blocks: int) -> tuple[float, list[float]]:
    """Sliced W1 of samples to the data's real ones, and the same without each block of seeds."""
    draw = torch.Generator().manual_seed(0)
    ways = torch.randn(data.real[0].numel(), PROJECTIONS, generator=draw)
    ways = ways / ways.norm(dim=0)
    points, real = x0.flatten(1).float() @ ways, data.real @ ways
    groups = group_of(len(points), blocks)
    sets = [points, *(points[groups != g] for g in range(blocks))]
    values = [_w1(rows, real) for rows in sets]
    return values[0], values[1:]


def _w1(a: Tensor, b: Tensor) -> float:
    """Mean over columns of W1 of two samples, by their quantiles."""
    places = (torch.arange(512) + 0.5) / 512
    return (a.quantile(places, 0) - b.quantile(places, 0)).abs().mean().item()


def key_of(data: Data, plan: Settings, *seeds: range) -> str:
    """A name for all that a row's numbers depend on: settings, networks, seeds and code."""
    root = Path(__file__).resolve().parents[2]
    files = [getattr(one, "sha256", None) for one in (data.model, data.guide)]
    code = [sha256_of(root / path) for path in CODE]
    told = [data.name, plain(vars(plan)), files, [str(one) for one in seeds], code]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def renew(rows: list[Row], wanted: Row, key: str, make: Callable[[], Row]) -> bool:
    """Make the row `wanted` unless it is there with this key; whether it was made."""
    place = next((i for i, row in enumerate(rows) if wanted.items() <= row.items()), len(rows))
    if place < len(rows) and rows[place].get("key") == key:
        return False
    rows[place : place + 1] = [wanted | make() | {"key": key, "made_by": provenance()}]
    return True

"""The ODE that a solver's error is measured on: networks, settings, and noise from seeds."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from erk.method.arguments import require
from erk.method.drift import Denoiser, GuidedDrift
from erk.method.fields import field
from erk.method.guidance import unguided
from erk.method.inputs import check_guide
from erk.method.point import Guidance, Step
from erk.method.sampler import loop, solve
from erk.method.settings import Settings
from erk.method.values import number
from erk.models.adapters import Adapter, parameters_sha256
from erk.models.noise import noise_and_labels

Draw = Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]
"""seeds -> unit-variance noise [B, ...] and labels, as `erk.noise_and_labels`."""


MOST_EVALUATIONS = 100_000
LEAST_EVALUATIONS = 8
"""Of a reference path: with fewer its error is that of the solvers that are compared with it."""


class Problem(NamedTuple):
    """An ODE and the plain solver that approximates it."""

    model: Denoiser
    guide_model: Denoiser | None
    settings: Settings  # without a correction
    draw: Draw
    batch: int = 64  # samples per evaluation
    guide_labels: Tensor | None = None  # those of every sample, [1, ...]; None: its own

    @property
    def sigmas(self) -> Tensor:
        """The noise levels, [N + 1]."""
        return self.settings.sigmas(self.model)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings and networks (by sha256) that a card of this problem applies to."""
        s = self.settings
        return s.recipe() | networks(self.model, self.guide_model, s.guidance)

    def drift(self, labels: Tensor | None) -> GuidedDrift:
        """Return the drift of the networks, with model guidance."""
        return self.settings.drift(*self.arguments(labels))

    def exact_drift(self, labels: Tensor | None) -> GuidedDrift:
        """Return the drift with model guidance and nothing else: the right side of the ODE."""
        return self.settings.exact_drift(*self.arguments(labels))

    def arguments(self, labels: Tensor | None) -> tuple[Any, ...]:
        """Return the arguments of a drift, with a row of guide_labels for each of labels."""
        guided = self.guide_labels
        if guided is not None and labels is not None:
            guided = guided.expand(len(labels), *guided.shape[1:])
        return self.model, labels, self.guide_model, guided

    def batches(self, seeds: Sequence[int]) -> list[Sequence[int]]:
        """Split the seeds into batches."""
        return [seeds[i : i + self.batch] for i in range(0, len(seeds), self.batch)]

    def key(self, *seeds: Sequence[int]) -> dict[str, Any]:
        """Return all that numbers of this problem depend on, as JSON, for `erk.io.cache`.

        The noise and labels of the seed lists are in it by content. Raises ValueError if a network
        has no sha256 to be identified by.
        """
        identity = self.identity
        if self.settings.twin is not None:
            raise ValueError("results can be kept only for the solver's pair: leave out twin.")
        if "" in (identity["network"], identity["guide"]):
            raise ValueError("results can be kept only for networks from files, by their sha256.")
        scale = self.settings.erk_scale
        if scale != field("erk_scale").default:
            identity = identity | {"erk_scale": scale}
        if self.guide_labels is not None:
            row = self.guide_labels
            identity = identity | {"guide_labels": [str(row.dtype), row.double().tolist()]}
        return identity | {
            "dtype": str(self.settings.dtype),
            "batch": self.batch,
            "device": torch.device(getattr(self.model, "device", "cpu")).type,
            "compute_dtype": str(getattr(self.model, "compute_dtype", None)),
            "samples": [self._fingerprint(part) for part in seeds],
        }

    def _fingerprint(self, seeds: Sequence[int]) -> str:
        """Hash the noise and labels of the seeds."""
        content = hashlib.sha256()
        for group in self.batches(seeds):
            for tensor in self.draw(group):
                content.update(b"" if tensor is None else tensor.cpu().numpy().tobytes())
        return content.hexdigest()

    @torch.inference_mode()
    def run(
        self,
        noise: Tensor,
        labels: Tensor | None,
        guidance: Guidance = unguided,
        watch: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """Solve with a guidance instead of that of the settings; return the last state [B, ...].

        `watch` is called with every step.
        """
        drift, sigmas = self.drift(labels), self.sigmas
        end = noise.to(sigmas.dtype) * sigmas[0]
        for x, step in loop(drift, end, sigmas, self.settings, guidance=guidance):
            end = x
            if watch is not None:
                watch(step)
        return end


PARAMETERS = ("parameters", "guide_parameters")
"""What `networks` calls those of networks that are not from a file."""


def networks(model: Any, guide_model: Any, guidance: float) -> dict[str, str | None]:
    """Return the SHA-256 of the denoisers' files ("": not from a file); no guide at guidance 1.

    A network that is not from a file is identified by the SHA-256 of its parameters and the shape
    of its samples, as far as they are known; a function by the shape alone.
    """
    guide = None if guidance == 1 else getattr(guide_model, "sha256", "")
    found = {"network": getattr(model, "sha256", ""), "guide": guide}
    if not found["network"]:
        with suppress(AttributeError, TypeError, ValueError):
            found["samples"] = str([int(size) for size in model.sample_shape])
    both = dict(zip(PARAMETERS, (model, None if guidance == 1 else guide_model), strict=True))
    return found | {name: value for name, one in both.items() if (value := _parameters(one))}


def _parameters(model: Any) -> str:
    """Return the SHA-256 of a denoiser's parameters; "" if from a file or unknown."""
    if getattr(model, "sha256", ""):
        return ""
    if isinstance(model, Adapter):
        return model.parameters_sha256
    return parameters_sha256(model) if isinstance(model, nn.Module) else ""


NOT_PLAIN = ("w_stiff", "w_con", "erk_scale", "erk_proj", "erk", "twin", "S_churn", "adaptive_tau",
             "pc_snr")  # fmt: skip
"""Settings that would change what a calibration measures: the plain, deterministic solver."""


def check_plain(settings: Settings, caller: str, honoured: Sequence[str] = ()) -> None:
    """Raise ValueError for settings that `caller` would ignore, except those `honoured`."""
    for name in NOT_PLAIN:
        usual = field(name).default
        if name not in honoured and getattr(settings, name) != usual:
            raise ValueError(f"{caller} measures the plain solver: leave {name} at {usual}.")


def check_evaluations(evaluations: Any) -> int:
    """Return the evaluations of a reference path; ValueError for too few."""
    return number("evaluations", evaluations, int, least=LEAST_EVALUATIONS, most=MOST_EVALUATIONS)


def problem_for(
    model: Any,
    settings: Settings,
    guide_model: Any = None,
    draw: Draw | None = None,
    batch: int = 64,
    guide_labels: Tensor | None = None,
) -> Problem:
    """Return the problem of a model whose noise and labels come from `erk.noise_and_labels`.

    `draw` replaces that rule. Raises ValueError for a guidance without a guide or with one that is
    the network itself with the same labels, for guide_labels of other than one row, for a batch
    that is no positive integer, and where fewer than two noise levels are above 0: nothing is to
    be corrected.
    """
    is_row = isinstance(guide_labels, Tensor) and guide_labels.shape[:1] == (1,)
    expected = "one row, [1, ...], for all samples"
    require(guide_labels is None or is_row, "guide_labels", expected, guide_labels)
    batch = number("batch", batch, int, least=1)
    draw = partial(noise_and_labels, model=model) if draw is None else draw
    problem = Problem(model, guide_model, settings, draw, batch, guide_labels)
    check_guide(problem.exact_drift(None))
    levels = problem.sigmas
    if (levels > 0).sum() < 2:
        raise ValueError(
            f"levels {levels.tolist()} have no step between two levels above 0: take more steps."
        )
    return problem


def with_levels(settings: Settings, model: Any) -> Settings:
    """Replace the schedule by its noise levels for this model.

    The result needs no model to compute its levels, so a stand-in can take the model's part.
    """
    levels = settings.sigmas(model).tolist()
    return replace(settings, schedule=levels, rho=None, denoise_to_zero=False)


def count_nfe(settings: Settings) -> tuple[float, float]:
    """Count evaluations per sample of the network and of its guide, without loading either.

    A Gaussian's exact denoiser takes their part. Only adaptive steps (``adaptive_tau``) depend on
    what a network returns.
    """
    drift = settings.drift(gaussian, None, None if settings.guidance == 1 else gaussian)
    noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    solve(drift, noise, settings)
    return float(drift.nfe), float(drift.guide_nfe)


def gaussian(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """Return D(x; sigma) for data of mean 0 and standard deviation 0.5."""
    return x * 0.25 / (0.25 + sigma**2)

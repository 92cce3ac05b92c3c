"""The drift f(x; sigma) = (x - D(x; sigma)) / sigma, with model guidance inside, counted."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erk.method.arguments import call_network, require, takes
from erk.method.point import Point, dot, norm
from erk.method.stiffness import Stiffness, stiffness

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x [B, ...] float32, sigma [] or [B] float32, labels) -> D(x; sigma) [B, ...].

sigma is [] on the CPU, so that a GPU never waits for it. A `torch.nn.Module` gets [B] on x's
device, as usual for networks, unless it has EDM's interface (`round_sigma`) and takes both.
"""


class NonFiniteError(FloatingPointError):
    """A sample became NaN or infinite.

    Parameters
    ----------
    sample
        Index of the sample in the batch.
    step
        Number of the step, from 0.
    sigma
        Noise level at which the step began.
    half
        Whether a network computed in float16, whose range is the likely reason.
    name
        What messages call the sample, such as "seed 7"; default: its index.
    """

    def __init__(self, sample: int, step: int, sigma: float, half: bool = False, name: str = ""):
        self.sample, self.step, self.sigma, self.half = sample, step, sigma, half
        advice = "check the weights and the settings of the sampler"
        if half:
            advice = (
                "in float16 numbers end at 65504: use bfloat16 or float32, by command --precision "
                "bf16 or fp32"
            )
        super().__init__(
            f"the network gave NaN or infinity for {name or f'sample {sample} of the batch'} at "
            f"step {step} (sigma {sigma:g}); {advice}"
        )

    def named(self, name: str) -> "NonFiniteError":
        """Return a copy of this error that names the sample."""
        return NonFiniteError(self.sample, self.step, self.sigma, self.half, name)


def check_finite(x: Tensor, step: int, sigma: Tensor | float, half: bool = False) -> None:
    """Raise NonFiniteError for the first sample of x [B, ...] with NaN or infinity.

    The CPU waits for the device of x.
    """
    bad = (~x.flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise NonFiniteError(int(bad[0]), step, float(sigma), half)


def check_network(name: str, network: Any) -> None:
    """Raise ValueError unless a network or function takes (x, sigma, labels)."""
    known, advice = takes(network, 3), ""
    if not known and takes(network, 2):
        advice = (
            "; it takes two arguments: add labels=None, or give erk.from_denoiser(...), which "
            "calls it with x and sigma [B]"
        )
    require(known, name, "a network or a function of (x, sigma, labels)", network, advice)


class GuidedDrift:
    """The drift of a denoiser, or of two: D = D_guide + guidance (D_main - D_guide).

    Classifier-free guidance takes an unconditional network as `guide_model`, Autoguidance a weaker
    one. If the guide is the main network, both are evaluated in one call at twice the batch. `nfe`
    and `guide_nfe` count the evaluations of each network.

    Parameters
    ----------
    model
        Denoiser D(x, sigma, labels).
    labels
        Passed to the networks, [B, label_dim] or None.
    guide_model
        The guiding network, required unless `guidance` is 1.
    guidance
        Weight of model guidance; at 1 the guide is not called.
    interval
        (lo, hi): the guide acts only for lo < sigma <= hi (Kynkäänniemi et al. 2024).
    guide_labels
        Labels of the guide, such as none for CFG within one network; default: `labels`.
    """

    def __init__(
        self,
        model: Denoiser,
        labels: Tensor | None = None,
        guide_model: Denoiser | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        guide_labels: Tensor | None = None,
    ):
        for name, network in (("model", model), ("guide_model", guide_model)):
            if network is not None or name == "model":
                check_network(name, network)
        require(isinstance(guidance, Real | Tensor), "guidance", "a number", guidance)
        is_pair = interval is None or np.shape(interval) == (2,)
        require(is_pair, "interval", "(lo, hi)", interval)
        if guidance != 1 and guide_model is None:
            raise ValueError(
                f"guidance {guidance:g} needs a guiding network: give guide_model (--gnet), or "
                "leave guidance at 1."
            )
        if guide_model is None and guide_labels is not None:
            raise ValueError("guide_labels need a guiding network: give guide_model.")
        self.model, self.guide_model, self.labels = model, guide_model, labels
        self.guide_labels = labels if guide_labels is None else guide_labels
        self.guidance, self.interval = guidance, interval
        self.nfe: float | Tensor = 0  # [B] where samples differ (adaptive steps)
        self.guide_nfe: float | Tensor = 0

    @property
    def in_half(self) -> bool:
        """Whether the network or its guide computes in float16 (`compute_dtype`)."""
        networks = (self.model, self.guide_model)
        return torch.float16 in [getattr(network, "compute_dtype", None) for network in networks]

    def __call__(self, x: Tensor, sigma: Tensor) -> Point:
        """Evaluate the ODE at x [B, ...] and sigma []."""
        main, guide = self.denoise(x, sigma)
        denoised = main if guide is None else self.combine(main, guide, sigma)
        return Point(x, (x - denoised) / sigma, sigma)  # Eq. 1

    def restart(self) -> None:
        """Forget earlier evaluations, for a run from the first noise level."""

    def combine(self, main: Tensor, guide: Tensor, sigma: Tensor) -> Tensor:
        """Return the guided D(x; sigma) of those of the network and its guide, [B, ...]."""
        return guide.lerp(main, self.guidance)

    def denoise(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return D(x; sigma) of the main network and of the guide (None where it does not act).

        Both [B, ...] in x's dtype; the networks see float32.
        """
        seen, level = x.to(torch.float32), sigma.to(torch.float32)
        self.nfe = self.nfe + 1
        if self.guide_model is None or not self._guided_at(sigma):
            return self._call(self.model, seen, level, self.labels).to(x.dtype), None
        self.guide_nfe = self.guide_nfe + 1
        if self.guide_model is self.model and self._labels_stack(len(x)):
            both = None
            if self.labels is not None and self.guide_labels is not None:
                both = torch.cat([self.labels, self.guide_labels])
            level = torch.cat([level, level]) if level.ndim else level
            answer = self._call(self.model, torch.cat([seen, seen]), level, both)
            main, guide = answer.to(x.dtype).chunk(2)
            return main, guide
        main = self._call(self.model, seen, level, self.labels).to(x.dtype)
        guide = self._call(self.guide_model, seen, level, self.guide_labels).to(x.dtype)
        return main, guide

    @staticmethod
    def _call(model: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Return D(x; sigma); ValueError unless it has x's shape: it would broadcast unseen."""
        denoised = call_network(model, x, _level_for(model, x, sigma), labels)
        is_tensor = isinstance(denoised, Tensor)
        if not is_tensor or denoised.shape != x.shape or denoised.is_complex():
            answer = f"{denoised.dtype} {tuple(denoised.shape)}" if is_tensor else type(denoised)
            raise ValueError(
                f"a denoiser must return D(x; sigma) of x's shape {tuple(x.shape)}, not {answer}: "
                "a network that predicts something else needs an adapter, such as erk.from_epsilon."
            )
        return denoised

    def _labels_stack(self, batch: int) -> bool:
        """Whether the labels of main and guide can go through the network as one batch."""
        if self.labels is None or self.guide_labels is None:
            return self.labels is self.guide_labels
        same = self.labels.shape == self.guide_labels.shape
        return same and len(self.labels) == batch and self.labels.dtype == self.guide_labels.dtype

    def _guided_at(self, sigma: Tensor) -> bool:
        if self.guidance == 1:
            return False
        if self.interval is None:
            return True
        lo, hi = self.interval  # tensor comparisons: the bounds round as sigma does
        return bool(lo < sigma) and bool(sigma <= hi)


def _level_for(model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """Return sigma as the model takes it (see `Denoiser`)."""
    if sigma.ndim or not isinstance(model, nn.Module) or hasattr(model, "round_sigma"):
        return sigma
    return sigma.to(x.device).expand(len(x))


class ProjectedDrift(GuidedDrift):
    """ERK-Proj: model guidance damped outside the stiff direction (Eq. 59-61).

    The difference of the drifts g = f_main - f_guide becomes `eta g + (1 - eta) <g, v> v` with eta
    = exp(-w_stiff rho), so that in stiff regions only its stiff part acts. rho and v come from the
    main network's drift (the paper does not say which) at two successive evaluations. Until there
    is a pair (Heun: in the first step) the plain g acts.

    Parameters
    ----------
    model
        As for `GuidedDrift`, and so are the arguments up to `guide_labels`.
    w_stiff
        Strength of the damping.
    embedded
        True: only two evaluations at the same sigma are a pair, i.e. Heun's, whose estimates hold
        for the whole step; False, for solvers that never evaluate twice at a sigma: any two
        successive ones.
    """

    def __init__(
        self,
        model: Denoiser,
        labels: Tensor | None = None,
        guide_model: Denoiser | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        guide_labels: Tensor | None = None,
        *,
        w_stiff: float,
        embedded: bool,
    ):
        super().__init__(model, labels, guide_model, guidance, interval, guide_labels)
        self.w_stiff, self.embedded = w_stiff, embedded
        self.restart()

    def restart(self) -> None:
        """Forget the pair, for a run from the first noise level."""
        self.last: Point | None = None
        self.estimate: Stiffness | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Point:
        """Evaluate the ODE at x [B, ...] and sigma [] with the damped guidance."""
        main, guide = self.denoise(x, sigma)
        here, before = Point(x, (x - main) / sigma, sigma), self.last
        self.last = here
        if guide is None:
            return here
        g = (guide - main) / sigma  # f_main - f_guide
        if before is not None and (before.sigma == sigma or not self.embedded):
            self.estimate = stiffness(here, before)
        if self.estimate is not None:
            rho, v, _, _ = self.estimate
            eta = torch.exp(-self.w_stiff * rho)
            g = eta * g + (1 - eta) * dot(g, v) * v
        return Point(x, here.f + (self.guidance - 1) * g, sigma)


class ApgDrift(GuidedDrift):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, Alg. 1).

    CFG is D = D_main + (guidance - 1) g with g = D_main - D_guide. Here g becomes, in this order,
    g + momentum (the g of the evaluation before); g min(1, threshold / |g|); and
    g - (1 - eta) <g, v> v with v = D_main / |D_main|, which removes what raises the contrast.
    With eta 1, no threshold and no momentum all bits are those of CFG.

    Parameters
    ----------
    *shared
        Arguments of `GuidedDrift`, in its order.
    eta
        Weight of the part of g along D_main.
    threshold
        Largest norm of g over a sample, in units of the data; 0 is no limit.
    momentum
        Weight of earlier g, usually negative. Only for solvers of one evaluation per step: others
        would count a step several times.
    """

    def __init__(
        self, *shared: Any, eta: float = 0.0, threshold: float = 0.0, momentum: float = 0.0
    ):
        super().__init__(*shared)
        self.eta, self.threshold, self.momentum = eta, threshold, momentum
        self.restart()

    def restart(self) -> None:
        """Forget the earlier g, for a run from the first noise level."""
        self.average: Tensor | None = None

    def combine(self, main: Tensor, guide: Tensor, sigma: Tensor) -> Tensor:
        """Return the guided D(x; sigma), [B, ...]."""
        plain = g = main - guide
        if self.momentum != 0:
            if self.average is not None:
                g = g + self.momentum * self.average
            self.average = g
        if self.threshold > 0:
            g = g * (self.threshold / norm(g)).clamp(max=1)
        v = main / norm(main).clamp(min=torch.finfo(main.dtype).tiny)  # 0 where main is 0
        g = g - (1 - self.eta) * dot(g, v) * v
        return (guide + (plain - g)).lerp(main, self.guidance)  # as CFG computes it


class CfgPlusPlusDrift(GuidedDrift):
    """CFG++ (Chung et al. 2024, arXiv 2406.08070): noise is added back as the guide predicts it.

    With D = D_guide + guidance (D_main - D_guide) a step of CFG++ is
    x_{i+1} = D + sigma_{i+1} (x_i - D_guide) / sigma_i. This is Euler's step of CFG with the weight
    guidance sigma_i / (sigma_i - sigma_{i+1}), which is the drift here, for
    sigma_{i+1} < sigma <= sigma_i; other solvers than Euler's integrate the same drift. The
    weight grows with the number of steps, so there is no ODE that finer steps approach.

    Parameters
    ----------
    *shared
        Arguments of `GuidedDrift`, in its order; guidance from 0 to 1.
    sigmas
        Noise levels of the run, [N + 1] on the CPU.
    """

    def __init__(self, *shared: Any, sigmas: Tensor):
        super().__init__(*shared)
        self.sigmas = sigmas

    def combine(self, main: Tensor, guide: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; sigma) with the weight of the interval of sigma, [B, ...]."""
        index = int((self.sigmas[1:-1] >= sigma).sum())
        start, end = self.sigmas[index : index + 2].tolist()
        return guide.lerp(main, self.guidance * start / (start - end))

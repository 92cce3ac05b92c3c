"""Any network as a denoiser D(x; sigma): predictors of noise, of v, of a flow's velocity, of D.

An adapter passes the network the state and the time that it was trained with and computes D from
its answer. The state has the dtype of the network's weights; the time does not, because bfloat16
has no 999. With x = data + sigma noise, a variance-preserving network sees x / sqrt(1 + sigma^2), a
flow x / (1 + sigma). All have the same probability-flow ODE (Karras et al. 2022, Eq. 4), so every
solver and every correction applies.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from erk.method.arguments import call_network, check_names, require, takes
from erk.method.point import level_for
from erk.method.values import number
from erk.models.encoders import PixelEncoder
from erk.runtime.distributed import check_device

Network = Callable[..., Tensor]
"""(state [B, ...], time [B]) or (state, time, labels), where there are any -> [B, ...].

time has the dtype of x; the state and labels of floats have that of the network's weights, or of x
for a function.
"""

Prediction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, ...], sigma, the network's answer [B, ...]) -> D [B, ...]; sigma broadcasts over x."""

FEW = 64  # values of a parameter that identify it

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": lambda x, sigma, answer: x - sigma * answer,
    "v_prediction": lambda x, sigma, answer: (
        x / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * answer
    ),
    "sample": lambda x, sigma, answer: answer,
}
"""What a variance-preserving network may predict, by diffusers' names (Salimans & Ho 2022)."""


class Times(NamedTuple):
    """The time that a network was trained with."""

    of: Callable[[Tensor], Tensor]  # sigma -> time, elementwise
    to: Callable[[Tensor], Tensor]  # time -> sigma
    sigma_min: float = 0.0
    sigma_max: float = math.inf


class Data(TypedDict, total=False):
    """What a network generates, for functions that start from seeds."""

    sample_shape: Sequence[int]  # of one sample, (C, H, W)
    label_dim: int  # number of classes; default: 0
    device: torch.device | str  # default: the CPU


class Adapter:
    """A denoiser (x [B, ...], sigma [] or [B], labels) -> D [B, ...] that knows its noise levels.

    Named schedules stay within `sigma_min` and `sigma_max`; `sigma` and `sigma_inv` are the
    network's time and back, for the schedule `discrete`. A level outside is seen by the network as
    the nearest end. `sample_shape`, `label_dim` and `device` are read by `erk.noise_and_labels`.
    """

    def __init__(
        self,
        model: Network,
        times: Times,
        scale: Callable[[Tensor], Tensor],
        denoised: Prediction,
        **data: Unpack[Data],
    ):
        check_names(data, Data.__annotations__, "Adapter")
        label_dim = number("label_dim", data.get("label_dim", 0), int, least=0)
        self._takes_labels, self._needs_labels = takes(model, 3), not takes(model, 2)
        known = self._takes_labels or takes(model, 2) and label_dim == 0
        arguments = "(x, time, labels)" if label_dim else "(x, time) or (x, time, labels)"
        require(known, "model", f"a network or a function of {arguments}", model)
        shape, device = data.get("sample_shape"), data.get("device", "cpu")
        is_shape = shape is None or isinstance(shape, Sequence) and all(map(_is_size, shape))
        require(is_shape, "sample_shape", "sizes such as (3, 32, 32)", shape)
        check_device(device)
        self.model, self._scale, self._denoised = model, scale, denoised
        self.sigma, self.sigma_inv = times.to, times.of
        self.sigma_min, self.sigma_max = times.sigma_min, times.sigma_max
        self.sample_shape = shape
        self.label_dim = label_dim
        self.device = torch.device(device)

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Return D(x; sigma), [B, ...]; ValueError if the network answers in another shape."""
        level = torch.as_tensor(sigma).to(x.dtype)
        time = level_for(x, self.sigma_inv(level)).flatten().expand(len(x))
        level = level_for(x, level)
        dtype = self.compute_dtype or x.dtype
        more = () if labels is None else (_in(dtype, labels),)
        if not more and self._needs_labels:
            raise ValueError(
                "the network takes (x, time, labels), but gets no labels: give them, or label_dim, "
                "its number of classes, so that erk.noise_and_labels draws them."
            )
        if more and not self._takes_labels:
            raise ValueError("labels are given, but the network takes (x, time) alone: give none.")
        answer = call_network(self.model, (x * self._scale(level)).to(dtype), time, *more)
        shape: Any = list(answer.shape) if isinstance(answer, Tensor) else type(answer)
        if shape != list(x.shape):
            raise ValueError(
                f"the network answers {shape} to a state of {list(x.shape)}: give a function that "
                "returns its prediction alone, such as lambda x, t: network(x, t).sample for a "
                "network of diffusers, or network(x, t).chunk(2, 1)[0] without a learned variance."
            )
        return self._denoised(x, level, answer.to(x.dtype))

    @property
    def parameters_sha256(self) -> str:
        """SHA-256 of the network's parameters and of the rule that gives D; "" if unknown."""
        known = parameters_sha256(self.model) if isinstance(self.model, nn.Module) else ""
        if not known:
            return ""
        level = torch.tensor([0.1, 1.0, 10.0])
        parts = self._scale(level), self.sigma_inv(level), self._denoised(level, level, 1 + level)
        rounded = [[f"{value:.4g}" for value in part.tolist()] for part in parts]
        content = [known, rounded, f"{self.sigma_min:.4g} {self.sigma_max:.4g}"]
        return hashlib.sha256(str(content).encode()).hexdigest()

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype of the network's first weight of 16 bits or more; None: it has no weights."""
        weights = self.model.parameters() if isinstance(self.model, nn.Module) else ()
        # weights of 8 bits are only stored in that form: the network computes in another
        wide = (w.dtype for w in weights if w.is_floating_point() and w.element_size() > 1)
        return next(wide, None)

    def decode(self, x: Tensor) -> Tensor:
        """Return samples in -1..1, [B, C, H, W], as images uint8."""
        return PixelEncoder().decode(x)


def parameters_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of dtype, shape and first values of every parameter; "" if unknown.

    These distinguish networks; hashing all values of a large one would take seconds. It is unknown
    for a network without parameters, and while they are offloaded or not yet initialised.
    """
    parameters, content = [*network.parameters()], hashlib.sha256()
    if not parameters or any(one.is_meta or is_lazy(one) for one in parameters):
        return ""
    for one in parameters:
        few = torch.atleast_1d(one.detach())[:FEW].flatten()[:FEW]  # not all of them contiguous
        content.update(f"{one.dtype} {[*one.shape]}".encode())
        content.update(few.double().cpu().numpy().tobytes())
    return content.hexdigest()


def from_epsilon(
    model: Network, alphas_cumprod: Sequence[float] | Tensor, **data: Unpack[Data]
) -> Adapter:
    """Return the denoiser of a noise predictor: DDPM, DiT, Stable Diffusion (Ho et al. 2020).

    Parameters
    ----------
    model
        `model(x_t, t)` or `model(x_t, t, labels)`: the noise in x_t = sqrt(a_t) data +
        sqrt(1 - a_t) noise. t [B] float32 counts steps from 0; it is fractional between the levels
        of `alphas_cumprod`, interpolated in ln sigma as in diffusers. x_t and labels of floats have
        the dtype of the network's weights, float32 for a function.
    alphas_cumprod
        a_t, [T], decreasing within (0, 1).
    **data
        sample_shape (C, H, W), label_dim (0), device ("cpu"), for `erk.noise_and_labels`.

    Raises
    ------
    ValueError
        If alphas_cumprod is not a list of two or more numbers that decrease within (0, 1).
    """
    times = discrete_times(alphas_cumprod)
    return Adapter(model, times, _vp_scale, PREDICTIONS["epsilon"], **data)


def from_v(
    model: Network, alphas_cumprod: Sequence[float] | Tensor, **data: Unpack[Data]
) -> Adapter:
    """Return the denoiser of a predictor of v = sqrt(a_t) noise - sqrt(1 - a_t) data.

    Parameters
    ----------
    model
        As for `from_epsilon`, but the network predicts v.
    alphas_cumprod
        As for `from_epsilon`.
    **data
        As for `from_epsilon`.
    """
    times = discrete_times(alphas_cumprod)
    return Adapter(model, times, _vp_scale, PREDICTIONS["v_prediction"], **data)


def from_flow(model: Network, data_at: int = 0, **data: Unpack[Data]) -> Adapter:
    """Return the denoiser of a rectified flow (Liu et al. 2022; Lipman et al. 2022).

    Here sigma is the share of noise divided by the share of data.

    Parameters
    ----------
    model
        `model(x_t, t)` or `model(x_t, t, labels)`: dx_t/dt on the straight line between data and
        noise, t [B] from 0 to 1; dtypes as for `from_epsilon`.
    data_at
        The end at which the data lie: 0 as in SD3, Flux and diffusers, 1 as in the two papers and
        SiT. Other values raise ValueError.
    **data
        As for `from_epsilon`.
    """
    if data_at not in (0, 1):
        raise ValueError(f"data_at must be 0 or 1, the time at which the data lie, not {data_at}.")
    sign = 1 if data_at == 0 else -1

    def time(sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma) if data_at == 0 else 1 / (1 + sigma)

    def level(t: Tensor) -> Tensor:
        return t / (1 - t) if data_at == 0 else (1 - t) / t

    def denoised(x: Tensor, sigma: Tensor, answer: Tensor) -> Tensor:
        return (x - sign * sigma * answer) / (1 + sigma)

    times = Times(time, level)
    return Adapter(model, times, lambda sigma: 1 / (1 + sigma), denoised, **data)


def from_denoiser(
    model: Network, sigma_min: float = 0.0, sigma_max: float = math.inf, **data: Unpack[Data]
) -> Adapter:
    """Return the denoiser `model(x, sigma)` or `model(x, sigma, labels)`, which gets sigma as [B].

    Parameters
    ----------
    model
        D(x; sigma), [B, ...]; dtypes as for `from_epsilon`.
    sigma_min
        Lowest noise level of its training.
    sigma_max
        Highest noise level of its training.
    **data
        As for `from_epsilon`.
    """
    sigma_min = number("sigma_min", sigma_min, least=0, finite=False)
    sigma_max = number("sigma_max", sigma_max, least=0, finite=False)
    times = Times(_same, _same, sigma_min, sigma_max)
    return Adapter(model, times, torch.ones_like, PREDICTIONS["sample"], **data)


def discrete_times(alphas_cumprod: Sequence[float] | Tensor) -> Times:
    """Return the steps 0, 1, ... of a variance-preserving process, continuous in between."""
    try:
        a = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError):
        a = torch.empty(0)
    if a.ndim != 1 or len(a) < 2 or not (a[-1] > 0 and a[0] < 1 and (a.diff() < 0).all()):
        raise ValueError(
            "alphas_cumprod must be a list of numbers that fall from below 1 to above 0."
        )
    levels, steps = ((1 - a) / a).sqrt().log(), torch.arange(len(a), dtype=torch.float64)

    def of(sigma: Tensor) -> Tensor:
        return _interpolate(sigma.to(torch.float64).log(), levels, steps)

    def to(time: Tensor) -> Tensor:
        return _interpolate(time.to(torch.float64), steps, levels).exp()

    return Times(of, to, levels[0].exp().item(), levels[-1].exp().item())


def _interpolate(points: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate the piecewise linear function through rising (x, y), constant beyond its ends."""
    x, y = x.to(points.device), y.to(points.device)
    right = torch.searchsorted(x, points.contiguous()).clamp(1, len(x) - 1)
    share = ((points - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return torch.lerp(y[right - 1], y[right], share)


def _in(dtype: torch.dtype, labels: Tensor) -> Tensor:
    """Return labels of floats, such as one-hot vectors, in a dtype; class numbers as they are."""
    return labels.to(dtype) if labels.is_floating_point() else labels


def _vp_scale(sigma: Tensor) -> Tensor:
    return 1 / (1 + sigma**2) ** 0.5


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) > 0


def _same(sigma: Any) -> Any:
    return sigma

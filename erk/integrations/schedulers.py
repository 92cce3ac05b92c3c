"""Schedulers of diffusers with ERK-Guid: the step of the parent class, then the correction.

The parent class computes its step unchanged. The guided prediction that the pipeline passes to
`step` is also recorded as an evaluation of the ODE in sigma: x = sample / alpha and the drift
(x - D) / sigma, at sigma = noise / alpha. At the end of a step the solver of the same name receives
these evaluations and returns the pair and the signed h (Table 9, docs/theory.md); the correction of
`erk_guid` is added to the parent's result.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from erk.method.guidance import erk_guid
from erk.method.point import Point, Solver
from erk.method.schedule import make_schedule
from erk.method.solvers import dpm2, dpmpp, euler, heun
from erk.method.values import number
from erk.models.adapters import PREDICTIONS, discrete_times


def _extend(method: Any, parents: Any) -> Any:
    """Give an override the parameters of the parent's method, then its keyword-only ones.

    Pipelines look at the names of parameters to see what a scheduler supports.
    """
    theirs, ours = inspect.signature(parents), inspect.signature(method).parameters.values()
    more = [one for one in ours if one.kind is one.KEYWORD_ONLY]
    method.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *more])
    method.__name__, method.__doc__ = parents.__name__, method.__doc__ or parents.__doc__
    return method


def _with_weights(parent: type) -> Callable[[Any], Any]:
    """Give an __init__ the parent's arguments, w_stiff and w_con; register all in the config."""
    return lambda init: register_to_config(_extend(init, parent.__init__))  # type: ignore[misc]


def _extends(parent: type) -> Callable[[type], type]:
    """Give every public method that a scheduler overrides the parameters of `parent`'s."""

    def decorate(kind: type) -> type:
        for name, theirs in vars(parent).items():
            ours = getattr(kind, name)
            if inspect.isfunction(theirs) and ours is not theirs and not name.startswith("_"):
                setattr(kind, name, _extend(vars(kind).get(name) or _copy(ours), theirs))
        return kind

    return decorate


def _copy(method: Any) -> Any:
    """Return a function that calls a method of the common part, which the schedulers share."""
    return lambda *args, **kwargs: method(*args, **kwargs)


class _Guided(SchedulerMixin):
    """ERK-Guid for a scheduler. With w_stiff 0 every step is the parent's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._check()
        self._forget()

    def _forget(self) -> None:
        self._points: list[Point] = []  # evaluations of the current step
        self._memory: Any = None  # the solver's

    def _check(self) -> None:
        """Raise ValueError for invalid weights, and for settings without ERK-Guid."""
        for name in ("w_stiff", "w_con"):
            number(name, self.config[name], least=0)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Create a scheduler from a config, as the parent class does.

        Raises ValueError for `erk`, which the parent class would ignore silently.
        """
        if kwargs.get("erk") is not None:
            raise ValueError(
                f"{cls.__name__} has no erk={kwargs['erk']!r}: give w_stiff and w_con, or sample "
                "with erk.sample(..., erk='auto')."
            )
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._check()
        self._forget()

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self.config.w_stiff == 0:
            return super().step(model_output, timestep, sample, *args, **kwargs)
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        wide = torch.promote_types(sample.dtype, torch.float32)  # for differences
        point = self._point(model_output.to(wide), sample.to(wide), index)
        result = super().step(model_output, timestep, sample, *args, **kwargs)
        self._points.append(point)
        solver = self._finished(index)
        if solver is not None:
            moved = result[0].to(wide) + self._correction(solver, *self._end(index))
            result = _replaced(result, moved.to(result[0].dtype))
        return result

    def _correction(self, solver: Solver, alpha: Tensor, sigma_next: Tensor) -> Tensor:
        """Compute the correction in the parent's scale; 0 below the stiffness threshold."""
        known, start = iter(self._points), self._points[0]
        if sigma_next == 0:  # Euler's last step, never corrected
            return torch.zeros_like(start.x)
        step = solver(lambda x, sigma: next(known), start.x, start.sigma, sigma_next, self._memory)
        self._points, self._memory = [], step.memory or (start,)
        bare = step._replace(x=torch.zeros_like(start.x))
        return alpha * erk_guid(bare, self.config.w_stiff, self.config.w_con)

    def _point(self, output: Tensor, sample: Tensor, index: int) -> Point:
        """Return the pipeline's evaluation at a level, in sigma."""
        raise NotImplementedError

    def _finished(self, index: int) -> Solver | None:
        """Return the solver of the step that ends with this call; None within a step."""
        raise NotImplementedError

    def _end(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) of the parent's result, each []."""
        raise NotImplementedError


@_extends(HeunDiscreteScheduler)
class ERKHeunScheduler(_Guided, HeunDiscreteScheduler):
    """diffusers' HeunDiscreteScheduler with ERK-Guid: epsilon, v and sample prediction.

    `w_stiff` scales the correction (0: off), `w_con` is the stiffness above which a sample is
    corrected. `set_timesteps` also accepts `sigmas`, so EDM and EDM2 networks, which have no
    discrete steps, are sampled with prediction_type 'sample' on EDM's schedule (see EDM2Pipeline).
    """

    @_with_weights(HeunDiscreteScheduler)
    def __init__(self, *args: Any, w_stiff: float = 0.0, w_con: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | None = None,
        *,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Set timesteps as the parent class, or by `sigmas`: noise levels that decrease to 0.

        Timesteps of `sigmas` are clamped to the parent's table. Raises ValueError if other
        arguments are given with them, or if they do not decrease to 0.
        """
        if sigmas is None:
            super().set_timesteps(num_inference_steps, device, num_train_timesteps, timesteps)
            return
        if num_inference_steps is not None or timesteps is not None:
            raise ValueError("give only one of num_inference_steps, timesteps and sigmas.")
        levels = make_schedule(sigmas).to(torch.float32)
        if levels[-1] != 0:
            raise ValueError("sigmas must end in 0, where the last step is Euler's: append 0.")
        super().set_timesteps(len(levels) - 1, device, num_train_timesteps)
        steps = discrete_times(self.alphas_cumprod).of(levels[:-1])
        self.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        steps = torch.cat([steps[:1], steps[1:].repeat_interleave(2)])
        self.timesteps = steps.to(device=device, dtype=torch.float32)

    def _point(self, output: Tensor, sample: Tensor, index: int) -> Point:
        kind, sigma = self.config.prediction_type, self.sigmas[index]
        if kind not in PREDICTIONS:
            raise ValueError(f"prediction_type must be {' or '.join(PREDICTIONS)}, not '{kind}'.")
        denoised = PREDICTIONS[kind](sample, sigma, output)
        if self.config.clip_sample:
            limit = self.config.clip_sample_range
            denoised = denoised.clamp(-limit, limit)
        return Point(sample, (sample - denoised) / sigma, sigma)

    def _finished(self, index: int) -> Solver | None:
        return heun if self.state_in_first_order else None

    def _end(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.ones(()), self.sigmas[index]  # the second call is at the end of the step


class _GuidedDPM(_Guided):
    """Common part of the two DPM-Solver schedulers."""

    def _check(self) -> None:
        super()._check()
        if self.config.w_stiff > 0 and self.config.algorithm_type.startswith("sde"):
            raise ValueError(
                "ERK-Guid (w_stiff > 0) needs a deterministic step: set algorithm_type to "
                "'dpmsolver++', or w_stiff to 0."
            )

    def _point(self, output: Tensor, sample: Tensor, index: int) -> Point:
        alpha, sigma = self._level(index)
        x = sample / alpha
        predicted = self.convert_model_output(output, sample=sample)
        return Point(x, (x - predicted) / sigma if self._predicts_x0 else predicted, sigma)

    def _end(self, index: int) -> tuple[Tensor, Tensor]:
        return self._level(index + 1)

    def _level(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (alpha, noise / alpha) at a level: x_t = alpha data + noise epsilon."""
        alpha, noise = self._sigma_to_alpha_sigma_t(self.sigmas[index])
        return alpha, noise / alpha

    @property
    def _predicts_x0(self) -> bool:
        return self.config.algorithm_type == "dpmsolver++"


@_extends(DPMSolverSinglestepScheduler)
class ERKDPMSolverSinglestepScheduler(_GuidedDPM, DPMSolverSinglestepScheduler):
    """diffusers' DPMSolverSinglestepScheduler (DPM-Solver-2S) with ERK-Guid.

    The pair of a second-order step is its start and its middle stage; a step of order 1 has the
    previous node as euler has. `w_stiff` scales the correction (0: off), `w_con` is the stiffness
    above which a sample is corrected. Raises ValueError for stochastic algorithms and for
    solver_order 3, which have no pair.
    """

    @_with_weights(DPMSolverSinglestepScheduler)
    def __init__(self, *args: Any, w_stiff: float = 0.0, w_con: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)

    def _check(self) -> None:
        super()._check()
        if self.config.w_stiff > 0 and self.config.solver_order > 2:
            raise ValueError(
                "ERK-Guid (w_stiff > 0) has no pair for singlestep solvers of order 3: set "
                "solver_order to 2, or w_stiff to 0."
            )

    def _finished(self, index: int) -> Solver | None:
        if index + 1 < len(self.order_list) and self.order_list[index + 1] > 1:
            return None
        if len(self._points) == 1:
            return euler
        return functools.partial(dpm2, predict_x0=self._predicts_x0)


@_extends(DPMSolverMultistepScheduler)
class ERKDPMSolverMultistepScheduler(_GuidedDPM, DPMSolverMultistepScheduler):
    """diffusers' DPMSolverMultistepScheduler (DPM-Solver++(2M), (3M)) with ERK-Guid.

    The pair is the start of the step and the previous node, with the sign of `dpmpp`.
    `w_stiff` scales the correction (0: off), `w_con` is the stiffness above which a sample is
    corrected. Raises ValueError for stochastic algorithms.
    """

    @_with_weights(DPMSolverMultistepScheduler)
    def __init__(self, *args: Any, w_stiff: float = 0.0, w_con: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)

    # The parent chooses the order of a step; these overrides record it.

    def dpm_solver_first_order_update(self, *args: Any, **kwargs: Any) -> Tensor:
        self._order = 1
        return super().dpm_solver_first_order_update(*args, **kwargs)

    def multistep_dpm_solver_second_order_update(self, *args: Any, **kwargs: Any) -> Tensor:
        self._order = 2
        return super().multistep_dpm_solver_second_order_update(*args, **kwargs)

    def multistep_dpm_solver_third_order_update(self, *args: Any, **kwargs: Any) -> Tensor:
        self._order = 3
        return super().multistep_dpm_solver_third_order_update(*args, **kwargs)

    def _finished(self, index: int) -> Solver | None:
        return functools.partial(
            dpmpp, sigmas=self.sigmas, order=self._order, predict_x0=self._predicts_x0,
            lower_order_final=False,
        )  # fmt: skip


def _replaced(result: Any, sample: Tensor) -> Any:
    """Replace prev_sample in the parent's result, a tuple or an output object."""
    if isinstance(result, tuple):
        return (sample, *result[1:])
    result.prev_sample = sample
    return result

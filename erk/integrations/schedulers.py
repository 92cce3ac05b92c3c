"""Schedulers of diffusers with ERK-Guid: the step of the parent class, then the correction."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,  # noqa: F401, from_pretrained of pipelines looks for it here
)
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from erk.integrations.guided import Guided, extends
from erk.method.point import Point, Solver
from erk.method.schedule import make_schedule
from erk.method.solvers import dpm2, dpmpp, euler, heun
from erk.models.adapters import PREDICTIONS, discrete_times, from_epsilon


@extends(HeunDiscreteScheduler)
class ERKHeunScheduler(Guided, HeunDiscreteScheduler):
    """diffusers' HeunDiscreteScheduler with ERK-Guid: epsilon, v and sample prediction.

    `w_stiff` scales the correction (0: off), `w_con` is the stiffness above which a sample is
    corrected; `erk="auto"` or a `card` replaces both. `set_timesteps` also accepts `sigmas`, so EDM
    and EDM2 networks, which have no discrete steps, are sampled with prediction_type 'sample' on
    EDM's schedule (see EDM2Pipeline).
    """

    SOLVERS = ("heun",)
    OUTPUT = HeunDiscreteSchedulerOutput

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
        if sigmas is None or self._has_card:
            more = {} if sigmas is None else {"sigmas": sigmas}
            super().set_timesteps(
                num_inference_steps, device, num_train_timesteps, timesteps, **more
            )
            return
        if num_inference_steps is not None or timesteps is not None:
            raise ValueError("give only one of num_inference_steps, timesteps and sigmas.")
        levels = make_schedule(sigmas)
        if levels[-1] != 0:
            raise ValueError("sigmas must end in 0, where the last step is Euler's: append 0.")
        self._check()
        self._forget()
        self._set_levels(levels, device)

    def _write_levels(self, levels: Tensor, device: Any) -> None:
        self.sigmas = levels.float()
        steps = discrete_times(self.alphas_cumprod).of(self.sigmas[:-1])
        self.timesteps = steps.to(device=device, dtype=torch.float32)

    def _stand_in(self) -> Any:
        discrete = self.config.prediction_type != "sample"  # EDM networks take any level
        return from_epsilon(_no_network, self.alphas_cumprod) if discrete else None

    def _scale(self, sigma: Tensor) -> Tensor:
        return torch.ones(())

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


class _GuidedDPM(Guided):
    """Common part of the two DPM-Solver schedulers."""

    def _check(self) -> None:
        super()._check()
        if self._acts and self.config.algorithm_type.startswith("sde"):
            raise ValueError(
                "ERK-Guid (w_stiff > 0, erk or card) needs a deterministic step: set "
                "algorithm_type to 'dpmsolver++', or leave ERK-Guid out."
            )
        midpoint = self.config.solver_type == "midpoint" or self.config.solver_order == 1
        if self.config.erk is not None and not midpoint:
            raise ValueError(
                "erk='auto' is computed for solver_type 'midpoint', not "
                f"'{self.config.solver_type}': take that one, or leave erk out."
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

    def _scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma) if self.config.use_flow_sigmas else 1 / (1 + sigma**2).sqrt()

    def _write_levels(self, levels: Tensor, device: Any) -> None:
        if self.config.use_flow_sigmas:  # the parent's sigmas are the share of noise
            levels = levels / (1 + levels)
            steps = levels[:-1] * self.config.num_train_timesteps
        else:
            steps = discrete_times(self.alphas_cumprod).of(levels[:-1])
        self.sigmas = levels.float()
        self.timesteps = steps.to(device=device, dtype=torch.float32)

    def _stand_in(self) -> Any:
        flow = self.config.use_flow_sigmas
        return None if flow else from_epsilon(_no_network, self.alphas_cumprod)

    @property
    def _predicts_x0(self) -> bool:
        return self.config.algorithm_type == "dpmsolver++"


@extends(DPMSolverSinglestepScheduler)
class ERKDPMSolverSinglestepScheduler(_GuidedDPM, DPMSolverSinglestepScheduler):
    """diffusers' DPMSolverSinglestepScheduler (DPM-Solver-2S) with ERK-Guid.

    The pair of a second-order step is its start and its middle stage; that of a step of order 1 is
    its start and the previous node. `w_stiff` scales the correction (0: off), `w_con` is the
    stiffness above which a sample is corrected; `erk="auto"` or a `card` replaces both. Raises
    ValueError for stochastic algorithms and for solver_order 3, which have no pair.
    """

    SOLVERS = ("dpm2", "euler")
    OUTPUT = SchedulerOutput

    def _check(self) -> None:
        super()._check()
        if self._acts and not self._has_card and self.config.solver_order > 2:
            raise ValueError(
                "ERK-Guid (w_stiff > 0 or erk) has no pair for singlestep solvers of order 3: set "
                "solver_order to 2, or leave ERK-Guid out."
            )

    def _finished(self, index: int) -> Solver | None:
        if index + 1 < len(self.order_list) and self.order_list[index + 1] > 1:
            return None
        if len(self._points) == 1:
            return euler
        sigma, middle, last = self._points[0].sigma, self._points[1].sigma, self._end(index)[1]
        share = 0.5 if last == 0 else math.log(sigma / middle) / math.log(sigma / last)
        return functools.partial(dpm2, r=share, predict_x0=self._predicts_x0)


@extends(DPMSolverMultistepScheduler)
class ERKDPMSolverMultistepScheduler(_GuidedDPM, DPMSolverMultistepScheduler):
    """diffusers' DPMSolverMultistepScheduler (DPM-Solver++(2M), (3M)) with ERK-Guid.

    The pair is the start of the step and the previous node, with the sign of `dpmpp`.
    `w_stiff` scales the correction (0: off), `w_con` is the stiffness above which a sample is
    corrected; `erk="auto"` or a `card` replaces both. Raises ValueError for stochastic algorithms.
    """

    SOLVERS = ("dpmpp", "euler")
    OUTPUT = SchedulerOutput

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
        if self._order == 1:
            return euler
        return functools.partial(
            dpmpp, sigmas=self.sigmas, order=self._order, predict_x0=self._predicts_x0,
            lower_order_final=False,
        )  # fmt: skip


def _no_network(x: Tensor, t: Tensor) -> Tensor:
    """Stand in for the network of an adapter that only converts noise levels."""
    raise NotImplementedError

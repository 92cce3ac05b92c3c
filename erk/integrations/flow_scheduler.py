"""A scheduler of diffusers with ERK-Guid for flow models: SD3, FLUX and others.

Such a network predicts the velocity v = noise - data at x_s = (1 - s) data + s noise. With
sigma = s / (1 - s) and x = x_s / (1 - s) that is the ODE of all other networks, dx/dsigma = noise:
Euler's step in s is Euler's step in sigma, and so is the state of Heun's second evaluation. Heun's
answers differ: beyond Euler's answer, the mean of two slopes moves x_s along the change of the
noise, (noise_2 - noise_1) (s' - s) / 2, times 1 / (1 - s') in s and 1 / (1 - s) in sigma.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,  # noqa: F401, from_pretrained of pipelines looks for it here
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import (
    FlowMatchHeunDiscreteSchedulerOutput,
)
from torch import Tensor

from erk.integrations.guided import Guided, extends
from erk.method.point import Point
from erk.method.values import number


@extends(FlowMatchEulerDiscreteScheduler, step=FlowMatchHeunDiscreteScheduler.step)
class ERKFlowMatchHeunScheduler(
    Guided, FlowMatchHeunDiscreteScheduler, FlowMatchEulerDiscreteScheduler
):
    """Heun's method with ERK-Guid for flow models, with velocity prediction.

    Config and `set_timesteps` (`sigmas`, `mu`, `timesteps`) are those of
    FlowMatchEulerDiscreteScheduler, which pipelines use; each step has a second evaluation (order
    2). Without ERK-Guid every step is FlowMatchHeunDiscreteScheduler's, in s. With `w_stiff`, `erk`
    or a `card` it is Heun's in sigma, as in `erk.sample(erk.from_flow(...))`, except from s = 1,
    where sigma is infinite: that step is FlowMatchHeunDiscreteScheduler's, uncorrected.
    """

    SOLVERS = ("heun",)
    OUTPUT = FlowMatchHeunDiscreteSchedulerOutput
    scale_noise = FlowMatchEulerDiscreteScheduler.scale_noise  # takes a batch of timesteps

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Create a scheduler from a config; `use_flow_sigmas` in it is that of an earlier card."""
        if isinstance(config, Mapping):
            config = {name: config[name] for name in config if name != "use_flow_sigmas"}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def _check(self) -> None:
        super()._check()
        for name in ("invert_sigmas", "stochastic_sampling"):
            if self.config[name]:
                raise ValueError(f"Heun's steps have no {name}: set it to False.")
        if self._has_card:  # pipelines then leave the noise levels to the scheduler
            self.register_to_config(use_flow_sigmas=True)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Set timesteps as FlowMatchEulerDiscreteScheduler, or those of the card.

        With a card `mu`, which pipelines compute from the size of images, has no effect.
        """
        if self._has_card:
            Guided.set_timesteps(self, num_inference_steps, device, sigmas, mu, timesteps)
            return
        if num_inference_steps is not None:
            num_inference_steps = number("num_inference_steps", num_inference_steps, int, least=1)
        self._check()
        self._forget()
        FlowMatchEulerDiscreteScheduler.set_timesteps(
            self, num_inference_steps, device, sigmas, mu, timesteps
        )
        steps: Tensor = self.timesteps  # type: ignore[has-type]
        last: Tensor = self.sigmas.cpu()  # type: ignore[has-type]  # no GPU sync later
        self._nodes = _noise_level(last)
        self.timesteps = torch.cat([steps[:1], steps[1:].repeat_interleave(2)])
        self.sigmas = torch.cat([last[:1], last[1:-1].repeat_interleave(2), last[-1:]])
        self.prev_derivative = self.dt = self.sample = None

    def _write_levels(self, levels: Tensor, device: Any) -> None:
        self.sigmas = (levels / (1 + levels)).float()
        steps = self.sigmas[:-1] * self.config.num_train_timesteps
        self.timesteps = steps.to(device)
        self.prev_derivative = self.dt = self.sample = None

    def _is_parents(self, index: int) -> bool:
        return not self._acts or (index < 2 and bool(self.sigmas[0] == 1))

    def _begin(self, index: int) -> None:
        if self._has_card:
            super()._begin(index)
        else:
            self._start_walk(self._nodes[index // 2 :])

    def _point(self, output: Tensor, sample: Tensor, index: int) -> Point:
        level = self.sigmas[index].double()
        noise = sample + (1 - level) * output
        return Point(sample / (1 - level), noise, _noise_level(level))

    def _scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)


def _noise_level(share: Tensor) -> Tensor:
    """Return sigma for shares s of noise, in float64."""
    share = share.double()
    return share / (1 - share)

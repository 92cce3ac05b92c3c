"""The public functions: sampling in one call."""

import difflib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erk.calibration.card import opened
from erk.method.corrections import Card, Correction
from erk.method.drift import Denoiser
from erk.method.point import Solver, Step
from erk.method.sampler import Trace, solve
from erk.method.settings import Noise, Settings


@torch.no_grad()
def sample(
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    solver: str | Solver = "heun",
    schedule: str | Sequence[float] = "edm",
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float | None = None,
    guide_model: Denoiser | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    w_stiff: float = 0.0,
    w_con: float = 0.5,
    erk: str | os.PathLike[str] | Card | Correction | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    guide_labels: Tensor | None = None,
    randn_like: Noise = torch.randn_like,
    return_trajectory: bool = False,
    trace: bool = False,
    **settings: Any,
) -> Any:
    """Solve the probability-flow ODE from unit-variance `noise` [B, ...]; returns x0 [B, ...].

    `model` and `guide_model` are denoisers D(x, sigma, labels): an erk.Model or any callable.
    `solver` is a name or a function, `schedule` a name or a list of sigmas, `steps` its intervals,
    `dtype` that of the state and of x0 (networks see float32). `guide_labels` are for a guide that
    sees other labels. `settings` are the other fields of `Settings`: solver_options,
    erk_scale, erk_proj, twin, S_churn, S_min, S_max, S_noise, afs, denoise_to_zero, adaptive_tau,
    pc_snr, pc_stochastic; `randn_like` draws the noise of the stochastic ones. With
    `return_trajectory` the states [steps + 1, B, ...] follow x0; with `trace` a dict of [steps, B]
    (see `guides.telemetry`) follows, last. Raises ValueError for settings that do not go together
    and NonFiniteError if the network produces NaN.
    """
    unknown = next((name for name in settings if name not in Settings.__dataclass_fields__), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, [*Settings.__dataclass_fields__], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise TypeError(f"sample() got an unexpected argument '{unknown}'{hint}")
    plan = Settings(
        solver, schedule, steps, sigma_min, sigma_max, rho, guidance, guidance_interval,
        w_stiff, w_con, dtype=dtype, erk=opened(erk), **settings,
    )  # fmt: skip
    if isinstance(plan.erk, Card) and plan.erk.doubt:
        warnings.warn(plan.erk.doubt, stacklevel=3)  # beyond torch's no_grad
    drift = plan.drift(model, labels, guide_model, guide_labels)
    states = [noise.to(plan.dtype) * plan.sigmas(model)[0]]
    seen = Trace(plan)

    def watch(x: Tensor, step: Step) -> None:
        if return_trajectory:
            states.append(x)
        if trace:
            seen(x, step)

    answer: list[Any] = [solve(drift, noise, plan, randn_like, watch)]
    if return_trajectory:
        answer.append(torch.stack(states))
    if trace:
        answer.append(seen.result())
    return answer[0] if len(answer) == 1 else tuple(answer)

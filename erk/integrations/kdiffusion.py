"""Samplers with ERK-Guid for k-diffusion, ComfyUI and all who share their contract.

    x0 = sample_erk_heun(model, torch.randn(...) * sigmas[0], sigmas, extra_args={"cond": ...})

`model(x, sigma, **extra_args)` returns the denoised x, where sigma is a vector with the noise
level of every sample; `sigmas` fall, as a rule to 0. With w_stiff 0 these are k-diffusion's
sample_heun and sample_dpm_2 without churn. A flow model whose levels are times t in 0..1 fits in as
it is: its ODE has the same form, dx/dt = (x - D) / t.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from erk.method.guidance import ErkGuid
from erk.method.point import Point, Solver
from erk.method.sampler import steps
from erk.method.solvers import dpm2, heun

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]


@torch.no_grad()
def sample_erk_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    w_stiff: float = 1.0,
    w_con: float = 0.5,
) -> Tensor:
    """Heun's method (EDM's) with ERK-Guid, two calls of the model per step, from x [B, ...].

    `w_stiff` scales the correction (0: off), `w_con` is the stiffness above which a sample is
    corrected. After every step `callback` gets x and denoised at its start, i, sigma and sigma_hat
    (the same); `disable` hides the progress bar. Returns x at sigmas[-1], [B, ...].
    """
    return _sample(heun, model, x, sigmas, extra_args, callback, disable, w_stiff, w_con)


@torch.no_grad()
def sample_erk_dpm2(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    w_stiff: float = 1.0,
    w_con: float = 0.5,
) -> Tensor:
    """DPM-Solver-2 with ERK-Guid; see `sample_erk_heun`."""
    return _sample(dpm2, model, x, sigmas, extra_args, callback, disable, w_stiff, w_con)


SAMPLERS = {"erk_heun": sample_erk_heun, "erk_dpm2": sample_erk_dpm2}
"""By their names in lists of samplers."""


def _sample(
    solver: Solver,
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    w_stiff: float,
    w_con: float,
) -> Tensor:
    ones, seen = x.new_ones([len(x)]), []

    def drift(x: Tensor, sigma: Tensor) -> Point:
        denoised = model(x, sigma * ones, **(extra_args or {}))
        seen.append(denoised)
        return Point(x, (x - denoised) / sigma, sigma)

    levels = sigmas.detach().cpu()  # comparing them costs no GPU sync
    run = steps(drift, x, levels, solver, ErkGuid(w_stiff, w_con))
    for i, (answer, step) in enumerate(tqdm(run, total=len(sigmas) - 1, disable=disable)):
        if callback is not None:
            level = {"sigma": sigmas[i], "sigma_hat": sigmas[i]}
            callback({"x": step.start.x, "i": i, "denoised": seen[0], **level})
        seen.clear()
        x = answer
    return x

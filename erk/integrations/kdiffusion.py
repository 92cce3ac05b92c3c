"""Samplers with ERK-Guid for k-diffusion, ComfyUI and packages with the same interface.

    x0 = sample_erk_heun(model, torch.randn(...) * sigmas[0], sigmas, extra_args={"cond": ...})

`model(x, sigma, **extra_args)` returns the denoised x, where sigma [B] is the noise level of each
sample; `sigmas` decrease, usually to 0. With w_stiff 0 these are k-diffusion's
sample_heun and sample_dpm_2 without churn. A flow model whose levels are times t in 0..1 works
unchanged: its ODE has the same form, dx/dt = (x - D) / t.
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
    """Sample by EDM's Heun method with ERK-Guid, two calls of the model per step.

    Parameters
    ----------
    model : (x, sigma [B], **extra_args) -> denoised x.
    x : noise times sigmas[0], [B, ...].
    sigmas : decreasing noise levels, [steps + 1].
    extra_args : keyword arguments of the model.
    callback : receives a dictionary after each step: x and denoised at its start, i, sigma and
        sigma_hat (equal).
    disable : hides the progress bar.
    w_stiff : scale of the correction; 0 is off.
    w_con : stiffness above which a sample is corrected.

    Returns
    -------
    x at sigmas[-1], [B, ...].
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
    """Sample by DPM-Solver-2 with ERK-Guid; see `sample_erk_heun`."""
    return _sample(dpm2, model, x, sigmas, extra_args, callback, disable, w_stiff, w_con)


SAMPLERS = {"erk_heun": sample_erk_heun, "erk_dpm2": sample_erk_dpm2}
"""Samplers by the names that user interfaces list."""


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
    ones, evaluations = x.new_ones([len(x)]), []

    def drift(x: Tensor, sigma: Tensor) -> Point:
        denoised = model(x, sigma * ones, **(extra_args or {}))
        evaluations.append(denoised)
        return Point(x, (x - denoised) / sigma, sigma)

    levels = sigmas.detach().cpu()  # comparing them costs no GPU sync
    run = steps(drift, x, levels, solver, ErkGuid(w_stiff, w_con))
    for i, (answer, step) in enumerate(tqdm(run, total=len(sigmas) - 1, disable=disable)):
        if callback is not None:
            level = {"sigma": sigmas[i], "sigma_hat": sigmas[i]}
            callback({"x": step.start.x, "i": i, "denoised": evaluations[0], **level})
        evaluations.clear()
        x = answer
    return x

"""Samplers with ERK-Guid for k-diffusion, ComfyUI and packages with the same interface.

    x0 = sample_erk_heun(model, torch.randn(...) * sigmas[0], sigmas, extra_args={"cond": ...})

`model(x, sigma, **extra_args)` returns the denoised x, where sigma [B] is the noise level of each
sample; `sigmas` decrease, usually to 0. With w_stiff 0 these are k-diffusion's sample_heun and
sample_dpm_2 without churn. As there, the state has the wider dtype of x and sigmas from the first
step on. A flow model, whose levels are times t in 0..1, is refused with w_stiff above 0: in t the
correction does not help.
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
from erk.method.values import number

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
    callback : receives a dictionary in each step, after its first call of the model: x and denoised
        at its start, i, sigma and sigma_hat (equal). Changing x in place changes the run.
    disable : hides the progress bar.
    w_stiff : scale of the correction; 0 is off.
    w_con : stiffness above which a sample is corrected.

    Returns
    -------
    x at sigmas[-1], [B, ...], in the wider dtype of x and sigmas.

    Raises
    ------
    ValueError for invalid weights, and for a flow model of ComfyUI with w_stiff above 0.
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
    w_stiff = number("w_stiff", w_stiff, least=0)
    w_con = number("w_con", w_con, least=0)
    if w_stiff > 0 and _is_flow(model):
        raise ValueError(
            "ERK-Guid does not help flow models in their time t: set w_stiff to 0, or sample with "
            "erk.from_flow, which converts t to sigma."
        )
    ones, levels = x.new_ones([len(x)]), sigmas.detach().cpu()  # comparing costs no GPU sync
    wide = torch.promote_types(x.dtype, sigmas.dtype)
    given, done, begun = x, 0, 0  # steps that are done and begun

    def drift(x: Tensor, sigma: Tensor) -> Point:
        nonlocal begun
        seen = x if begun else given  # the first call sees x as it was given
        denoised = model(seen, sigma * ones, **(extra_args or {}))
        f = (seen - denoised).to(wide) / sigma
        if begun == done:
            begun += 1
            if callback is not None:
                level = {"sigma": sigmas[done], "sigma_hat": sigmas[done]}
                callback({"x": seen, "i": done, "denoised": denoised, **level})
        return Point(seen.to(wide), f, sigma)

    run = steps(drift, x.to(wide), levels, solver, ErkGuid(w_stiff, w_con))
    for answer, _ in tqdm(run, total=len(sigmas) - 1, disable=disable):
        x, done = answer, done + 1
    return x


def _is_flow(model: Any) -> bool:
    """Return whether a model of ComfyUI predicts a flow: its model_sampling is a CONST."""
    inner = getattr(model, "inner_model", None)
    sampling = getattr(getattr(inner, "inner_model", None), "model_sampling", None)
    patcher = getattr(inner, "model_patcher", None)
    if patcher is not None:
        sampling = patcher.get_model_object("model_sampling")
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)

"""Samplers with ERK-Guid for k-diffusion, ComfyUI and packages with the same interface.

    x0 = sample_erk_heun(model, torch.randn(...) * sigmas[0], sigmas, extra_args={"cond": ...})

`model(x, sigma, **extra_args)` returns the denoised x, where sigma [B] is the noise level of each
sample; `sigmas` decrease, usually to 0. With w_stiff 0 these are k-diffusion's sample_heun and
sample_dpm_2 without churn. As there, the state has the wider dtype of x and sigmas from the first
step on. A flow model, whose levels are times t in 0..1, is refused with ERK-Guid: in t the
correction does not help. With a card, model guidance is compared to extra_args["cond_scale"] or to
the cfg of ComfyUI's guider, and is 1 where there is neither.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from erk.calibration.card import open_card
from erk.integrations.sampler import levels_of, settings_for
from erk.method.arguments import require, takes
from erk.method.corrections import Correction
from erk.method.guidance import unguided
from erk.method.point import Guidance, Point
from erk.method.sampler import steps
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS

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
    w_stiff: float | None = None,
    w_con: float | None = None,
    erk: str | None = None,
    card: Any = None,
) -> Tensor:
    """Sample by EDM's Heun method with ERK-Guid, with two calls of the model per step.

    Parameters
    ----------
    model
        (x, sigma [B], **extra_args) -> denoised x.
    x
        Noise times sigmas[0], [B, ...].
    sigmas
        Decreasing noise levels, [steps + 1]; with a card those of `card_sigmas(card)`.
    extra_args
        Keyword arguments of the model.
    callback
        Receives a dictionary in each step that calls the model, after its first call: x and
        denoised there, i, sigma and sigma_hat (equal). Changing x in place changes the run.
    disable
        Whether the progress bar is hidden.
    w_stiff
        Strength of the correction; 0 is off. Default: 1, or 0 with `erk` or a card.
    w_con
        Stiffness above which a sample is corrected. Default: 0.5.
    erk
        "auto": a correction without weights.
    card
        The path of a card (erk calibrate) for this solver.

    Returns
    -------
    Tensor
        x at sigmas[-1], [B, ...], in the wider dtype of x and sigmas.

    Raises
    ------
    ValueError
        For invalid weights; for a card of another solver, network, guidance or other noise levels,
        or one that the other arguments contradict; for a flow model of ComfyUI with ERK-Guid.
    """
    erk_guid = (w_stiff, w_con, erk, card)
    return _sample(("heun",), model, x, sigmas, extra_args, callback, disable, *erk_guid)


@torch.no_grad()
def sample_erk_dpm2(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    w_stiff: float | None = None,
    w_con: float | None = None,
    erk: str | None = None,
    card: Any = None,
) -> Tensor:
    """Sample by DPM-Solver-2 with ERK-Guid; see `sample_erk_heun`."""
    erk_guid = (w_stiff, w_con, erk, card)
    return _sample(("dpm2",), model, x, sigmas, extra_args, callback, disable, *erk_guid)


@torch.no_grad()
def sample_erk_card(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    card: Any = None,
) -> Tensor:
    """Sample as a card of any solver says; see `sample_erk_heun`."""
    if card is None:
        raise ValueError("sample_erk_card needs a card: give card='FILE' of erk calibrate.")
    return _sample(
        tuple(SOLVERS), model, x, sigmas, extra_args, callback, disable, None, None, None, card
    )


SAMPLERS = {"erk_heun": sample_erk_heun, "erk_dpm2": sample_erk_dpm2}
"""Samplers by the names that user interfaces list."""


def card_sigmas(card: Any) -> Tensor:
    """Return the noise levels of a card, [steps + 1] float32; ValueError for another file."""
    return levels_of(open_card(card).settings).float()


def _check(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any) -> None:
    """Raise ValueError for arguments of a wrong type."""
    require(callable(model), "model", "a function (x, sigma, **extra_args)", model)
    require(isinstance(x, Tensor) and x.ndim > 0, "x", "a tensor [B, ...]", x)
    is_list = isinstance(sigmas, Tensor) and sigmas.ndim == 1
    require(is_list, "sigmas", "a tensor [steps + 1]", sigmas)
    require(isinstance(extra_args, Mapping | None), "extra_args", "a dictionary", extra_args)
    is_callback = callback is None or takes(callback, 1)
    require(is_callback, "callback", "a function of a dictionary", callback)


def _sample(
    solvers: tuple[str, ...],
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    w_stiff: float | None,
    w_con: float | None,
    erk: str | None,
    card: Any,
) -> Tensor:
    _check(model, x, sigmas, extra_args, callback)
    plain = erk is None and card is None
    settings = settings_for(
        f"this sampler ({', '.join(solvers)})", solvers, card, erk,
        1.0 if w_stiff is None and plain else w_stiff, w_con,
        1.0 if card is None else _guidance(model, extra_args or {}, open_card(card).settings),
    )  # fmt: skip
    if (settings.w_stiff > 0 or not plain) and _is_flow(model):
        raise ValueError(
            "ERK-Guid does not help flow models in their time t: leave erk and card out and set "
            "w_stiff to 0, or sample with erk.from_flow, which converts t to sigma (in ComfyUI: "
            "take another sampler)."
        )
    if card is not None:
        open_card(card).check(model, None, wrapped=True)
        _check_levels(settings, sigmas)
    levels = sigmas.detach().cpu()  # comparing costs no GPU sync
    guidance: Guidance = unguided
    if len(levels) > 1:
        guidance = settings.correction(levels) or unguided
    if erk is not None and isinstance(guidance, Correction):
        guidance.warn_if_idle(solvers[0], stacklevel=5)
    solver = settings.solver_for(levels, None)
    ones = x.new_ones([len(x)])
    wide = torch.promote_types(x.dtype, sigmas.dtype)
    given, done, begun = x, 0, 0  # steps that are done and begun

    def drift(x: Tensor, sigma: Tensor) -> Point:
        nonlocal begun
        is_start = not (begun or done) and sigma == levels[0]  # not with an analytic first step
        seen = given if is_start else x  # the first call sees x as it was given
        denoised = model(seen, sigma * ones, **(extra_args or {}))
        f = (seen - denoised).to(wide) / sigma
        if begun <= done:
            begun = done + 1
            if callback is not None:
                level = {"sigma": sigma.to(sigmas.device), "sigma_hat": sigma.to(sigmas.device)}
                callback({"x": seen, "i": done, "denoised": denoised, **level})
        return Point(seen.to(wide), f, sigma)

    run = steps(drift, x.to(wide), levels, solver, guidance)
    for answer, _ in tqdm(run, total=len(sigmas) - 1, disable=disable):
        x, done = answer, done + 1
    return x


def _guidance(model: Any, extra_args: dict[str, Any], card: Settings) -> float:
    """Return the weight of model guidance: ComfyUI's guiders and k-diffusion's scripts name it.

    Raises ValueError for another than the card's.
    """
    weight = getattr(getattr(model, "inner_model", None), "cfg", 1.0)
    guidance = float(extra_args.get("cond_scale", weight))
    if guidance != card.guidance:
        raise ValueError(
            f"the card sets guidance to {card.guidance}, which contradicts {guidance}: set "
            f"extra_args['cond_scale'] (in ComfyUI: cfg) to {card.guidance}, or leave the card out."
        )
    return guidance


def _check_levels(settings: Settings, sigmas: Tensor) -> None:
    """Raise ValueError unless `sigmas` are the noise levels of a card's settings."""
    card = levels_of(settings)
    same = len(card) == len(sigmas)
    if not (same and torch.allclose(card, sigmas.detach().cpu().double(), rtol=1e-4, atol=1e-6)):
        raise ValueError(
            f"the card sets {len(card)} noise levels from {card[0]:g} to {card[-1]:g}, which "
            f"contradicts the {len(sigmas)} sigmas given: pass card_sigmas(card) (in ComfyUI: "
            "connect SIGMAS of ERK-Guid card)."
        )


def _is_flow(model: Any) -> bool:
    """Return whether a model of ComfyUI predicts a flow: its model_sampling is a CONST."""
    inner = getattr(model, "inner_model", None)
    sampling = getattr(getattr(inner, "inner_model", None), "model_sampling", None)
    patcher = getattr(inner, "model_patcher", None)
    if patcher is not None:
        sampling = patcher.get_model_object("model_sampling")
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)

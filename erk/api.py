"""The public functions: a denoiser, noise and settings in, samples out.

They work for any denoiser D(x, sigma, labels): an `erk.Model`, an adapter or a function.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from erk.calibration.card import Card, open_card
from erk.io.atomic import save_file
from erk.method.arguments import PATHS, require, takes
from erk.method.churn import Noise
from erk.method.conflicts import check_given
from erk.method.corrections import Correction
from erk.method.drift import Denoiser, GuidedDrift
from erk.method.fields import check_needs
from erk.method.inputs import check_inputs
from erk.method.point import Solver
from erk.method.sampler import Callback, State, Trace, integrate, solve
from erk.method.settings import Settings, check_settings
from erk.method.values import number
from erk.models.encoders import PixelEncoder

ARRAYS = ("sigmas", "stiffness", "gate", "df", "push")  # of a trace that is plotted
F = TypeVar("F", bound=Callable[..., Any])


def _with_card(function: F) -> F:
    """Let `card=` set what a call leaves out; refuse what contradicts it or has no effect."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        card = kwargs.pop("card", None)
        bound = signature.bind_partial(*args, **kwargs).arguments
        more = bound.pop("settings", {})
        check_settings(more, function)
        given = {**bound, **more}
        if card is None:
            check_needs({name for name, value in given.items() if value is not None})
            known = _settings_in(given)
            check_given(known, Settings(**known))
            return function(*args, **kwargs)
        card = open_card(card)
        _check_guide(card, given.get("guide_model"))
        card.check(given.get("model"), given.get("guide_model"))
        return function(**given | card.sampler_for(_settings_in(given)))

    return call  # type: ignore[return-value]


def _check_guide(card: Card, guide_model: Any) -> None:
    """Raise ValueError for a guide that the card does not use, or for none where it needs one."""
    guidance = card.settings.guidance
    if guidance == 1 and guide_model is not None:
        raise ValueError(
            "the card is without model guidance, so guide_model has no effect: leave it out, or "
            "take a card that was calibrated with it."
        )
    if guidance != 1 and guide_model is None:
        raise ValueError(
            f"the card is for guidance {guidance:g}: give the guide_model that it was calibrated "
            "with, and its guide_labels."
        )


def _settings_in(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in Settings.__dataclass_fields__}


@_with_card
def sample(
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    solver: str | Solver = "heun",
    schedule: str | Sequence[float] | None = None,
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float | None = None,
    guide_model: Denoiser | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    w_stiff: float = 0.0,
    w_con: float = 0.5,
    erk: str | Correction | None = None,
    dtype: torch.dtype = torch.float32,
    callback: Callback | None = None,
    *,
    guide_labels: Tensor | None = None,
    randn_like: Noise = torch.randn_like,
    card: str | os.PathLike[str] | Card | None = None,
    **settings: Any,
) -> Tensor:
    """Solve the probability-flow ODE `dx/dsigma = (x - D(x; sigma)) / sigma` from noise to data.

    Parameters
    ----------
    model
        Denoiser D(x, sigma, labels) -> [B, ...], called with float32. sigma is [] for a function
        and [B] on x's device for a `torch.nn.Module`; `erk.from_denoiser(function)` makes a
        function get [B], too.
    noise
        Noise of unit variance, [B, ...], as from `erk.noise_and_labels`.
    labels
        Passed to the networks: [B, label_dim] float32 for an `erk.Model`, None without classes.
    solver
        euler, heun, dpm2, ipndm, ipndm_v, deis, dpmpp or unipc, or a function
        (drift, x, sigma, sigma_next, memory) -> Step.
    schedule
        edm, polynomial, logsnr, time_uniform or discrete, or a list of noise levels; default: the
        schedule that the solver is published with.
    steps
        Intervals of a named schedule.
    sigma_min
        Lowest noise level above 0 of a named schedule.
    sigma_max
        Highest noise level of a named schedule.
    rho
        Exponent of a named schedule; None is that of the schedule.
    guide_model
        The guiding network of CFG or Autoguidance.
    guidance
        Weight of the guide in D = D_guide + guidance (D_main - D_guide); 1, the default, is off.
    guidance_interval
        (lo, hi) in sigma within which the guide acts.
    w_stiff
        Strength of ERK-Guid (Eq. 17-20); 0 is off.
    w_con
        Stiffness above which ERK-Guid acts.
    erk
        "auto": ERK-Guid without weights.
    dtype
        dtype of the state and of the result; EDM's injection of noise keeps the state in float64.
    callback
        Called with the `State` of every step, such as an `erk.Trace()`.
    guide_labels
        Labels of the guide; default: `labels`.
    randn_like
        Draws the noise of stochastic settings.
    card
        A card of `erk.calibrate` or the path of one: it sets solver, noise levels, corrections and
        guidance weight, and an argument that contradicts it is an error.
    **settings
        The other fields of `erk.Settings`, such as solver_options, churn_rule and afs.

    Returns
    -------
    Tensor
        The samples x0, [B, ...] in `dtype`.

    Raises
    ------
    ValueError
        For settings that are out of range or do not go together, and for noise or labels that do
        not fit the model or one another.
    NonFiniteError
        If a network produces NaN or infinity.
    """
    drift, plan = _prepare(
        model, labels, guide_model, guide_labels, solver=solver, schedule=schedule, steps=steps,
        sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, guidance=guidance,
        guidance_interval=guidance_interval, w_stiff=w_stiff, w_con=w_con, erk=erk, dtype=dtype,
        **settings,
    )  # fmt: skip
    check_inputs(drift, noise, randn_like)
    is_callback = callback is None or takes(callback, 1)
    require(is_callback, "callback", "a function of an erk.State", callback)
    with torch.no_grad():
        return solve(drift, noise, plan, randn_like, callback).to(dtype)


@_with_card
def trajectory(
    model: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    guide_model: Denoiser | None = None,
    guide_labels: Tensor | None = None,
    randn_like: Noise = torch.randn_like,
    card: str | os.PathLike[str] | Card | None = None,
    **settings: Any,
) -> Iterator[State]:
    """Yield the states of `sample`, one per step, as they are computed.

    Parameters
    ----------
    model
        This and the other arguments are as for `sample`.
    **settings
        All fields of `erk.Settings`, as for `sample`.

    Yields
    ------
    State
        `x` [B, ...] at `sigma_next`, `denoised` [B, ...] at `sigma`, `index`, `stiffness` [B],
        `gate` [B], `correction` [B, ...]; `step` is the solver's `Step`.

    Raises
    ------
    ValueError, NonFiniteError
        As `sample`; NonFiniteError after the last state.
    """
    networks = (model, labels, guide_model, guide_labels)
    drift, plan = _prepare(*networks, **settings)
    check_inputs(drift, noise, randn_like)
    return _states(drift, noise, plan, randn_like)


@torch.no_grad()
def _states(
    drift: GuidedDrift, noise: Tensor, plan: Settings, randn_like: Noise
) -> Iterator[State]:
    yield from integrate(drift, noise, plan, randn_like)


def _prepare(
    model: Denoiser,
    labels: Tensor | None,
    guide_model: Denoiser | None,
    guide_labels: Tensor | None,
    **settings: Any,
) -> tuple[GuidedDrift, Settings]:
    """Return the drift and the checked settings; warn where `auto` has no effect."""
    plan = Settings(**settings)
    drift = plan.drift(model, labels, guide_model, guide_labels)
    correction = plan.correction(plan.sigmas(model), model) if plan.erk == "auto" else None
    if isinstance(correction, Correction):
        name = getattr(plan.solver, "__name__", plan.solver)
        correction.warn_if_idle(repr(name), stacklevel=5)
    return drift, plan


def plot_trace(
    trace: Trace | Iterable[State] | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    w_con: float | None = None,
) -> bytes:
    """Plot stiffness, gate and correction along the noise level.

    Curves are medians over the samples; bands reach from quartile to quartile.

    Parameters
    ----------
    trace
        An `erk.Trace` after a run, the states of `erk.trajectory`, or the arrays that
        `erk generate --trace` writes: sigmas [S]; stiffness, gate, df, push [S, B].
    path
        A PNG file to write.
    w_con
        Draw this threshold of the stiffness.

    Returns
    -------
    bytes
        The figure as a PNG file.

    Raises
    ------
    ValueError
        If no step has a pair, so that there is nothing to plot.
    """
    from erk.analysis import trace_plot

    require(path is None or isinstance(path, PATHS), "path", "a path", path)
    w_con = None if w_con is None else number("w_con", w_con)
    if not isinstance(trace, Mapping):
        trace = _arrays(trace)
    require({*ARRAYS} <= {*trace}, "trace", f"a dictionary of {', '.join(ARRAYS)}", trace)
    if not (trace["stiffness"] >= 0).any():
        raise ValueError("no step has a pair, so there is nothing to plot: take more steps.")
    image = trace_plot.plot_trace(trace, w_con)
    if path is not None:
        save_file(Path(path), image)
    return image


def _arrays(trace: Trace | Iterable[State]) -> dict[str, Any]:
    """Return the telemetry of a run as NumPy arrays, with the noise levels."""
    if not isinstance(trace, Trace):
        states, trace = _listed(trace, "trace", "a trace or the states of a run"), Trace()
        for state in states:
            trace(state)
    rows = {name: values.float().cpu().numpy() for name, values in trace.result().items()}
    return {"sigmas": trace.sigmas.float().numpy(), **rows}


def _listed(states: Any, name: str, expected: str) -> list[State]:
    """Return the states of a run; ValueError for anything else."""
    is_run = isinstance(states, Iterable) and not isinstance(states, Tensor)
    listed = list(states) if is_run else [states]
    require(all(isinstance(one, State) for one in listed), name, expected, states)
    return listed


def animate(
    states: Iterable[State],
    path: str | os.PathLike[str],
    decode: Callable[[Tensor], Tensor] | None = None,
    captions: Sequence[str] | None = None,
) -> Path:
    """Write x and D along a trajectory as a .gif or .webp animation, one frame per step.

    Parameters
    ----------
    states
        The states of `erk.trajectory` for a few samples, which are all shown.
    path
        The file, .gif or .webp.
    decode
        Samples [B, ...] float32 -> images uint8 [B, C, H, W], such as `model.decode`; default: the
        samples are pixels, whose range -1..1 becomes 0..255.
    captions
        One text per sample; default: its number.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        For another kind of file, or a folder that cannot be written.
    """
    from erk.generation.film import check_film, render_frames, write_frames

    check_film(str(path))
    is_function = decode is None or takes(decode, 1)
    require(is_function, "decode", "a function of samples [B, ...]", decode)
    listed = _listed(states, "states", "the states of erk.trajectory")
    if not listed:
        raise ValueError("a trajectory without states cannot be animated.")
    count = len(listed[0].x)
    captions = [*map(str, range(count))] if captions is None else captions
    is_list = isinstance(captions, Sequence | np.ndarray) and len(captions) == count
    require(is_list, "captions", f"a list of {count} texts, one per sample", captions)
    write_frames(Path(path), render_frames(listed, decode or PixelEncoder().decode, captions))
    return Path(path)

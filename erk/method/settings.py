"""Settings: everything that decides a sample beside the networks, the noise and the labels."""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from erk.method.arguments import check_names, shown
from erk.method.churn import Churn, Noise
from erk.method.conflicts import CONFLICTS
from erk.method.corrections import Correction, auto
from erk.method.drift import (
    ApgDrift,
    CfgPlusPlusDrift,
    Denoiser,
    GuidedDrift,
    ProjectedDrift,
)
from erk.method.fields import FIELDS, field, fields
from erk.method.guidance import ErkGuid
from erk.method.point import NO_DOUBLE, Point, Solver, Step
from erk.method.ranges import plain
from erk.method.schedule import SCHEDULES, check_schedule, make_schedule
from erk.method.solvers import (
    analytic_first,
    default_options,
    make_solver,
    published_schedule,
)
from erk.method.values import checked

__all__ = ["RECIPE", "Settings", "Twin", "check_settings", "fields"]

Twin = Callable[[Step, Step | None], tuple[Point | None, Tensor | None]]
"""(step, the previous step or None) -> (twin, h): a pair for ERK-Guid chosen by the caller."""

RECIPE = (
    "solver", "steps", "sigma_min", "sigma_max", "guidance", "afs", "denoise_to_zero",
    "solver_options", "schedule", "rho", "guidance_interval",
)  # fmt: skip
"""The settings that a correction depends on."""
GUIDANCE = ("guidance_kind", "apg_eta", "apg_threshold", "apg_momentum")
"""The rule of model guidance, of which an identity names what is used."""


def _setting(name: str) -> Any:
    """Return the dataclass field of a declared setting."""
    default = field(name).default
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict)
    return dataclasses.field(default=torch.float32 if name == "dtype" else default)


@dataclass(frozen=True)
class Settings:
    """All that determines a sample, apart from the networks, the noise and the labels.

    A union: a solver with its options; a schedule; model guidance or none; one correction, i.e.
    ERK-Guid (w_stiff > 0), ERK-Proj (erk_proj), an embedded correction (erk) or none; churn or
    none; one of the paper's baselines or none. Construction reads no file; it converts numbers and
    arrays of NumPy and torch to Python's numbers and tuples, and raises ValueError, one sentence,
    for values of another type or out of range and for parts that do not go together.
    """

    solver: str | Solver = _setting("solver")
    schedule: str | Sequence[float] | Tensor | None = _setting("schedule")
    steps: int = _setting("steps")
    sigma_min: float = _setting("sigma_min")
    sigma_max: float = _setting("sigma_max")
    rho: float | None = _setting("rho")
    guidance: float = _setting("guidance")  # None: not given, becomes 1
    guidance_interval: tuple[float, float] | None = _setting("guidance_interval")
    guidance_kind: str = _setting("guidance_kind")
    apg_eta: float = _setting("apg_eta")
    apg_threshold: float = _setting("apg_threshold")
    apg_momentum: float = _setting("apg_momentum")
    w_stiff: float = _setting("w_stiff")
    w_con: float = _setting("w_con")
    erk_scale: str = _setting("erk_scale")
    erk_proj: bool = _setting("erk_proj")
    erk: str | Correction | None = _setting("erk")
    twin: Twin | None = _setting("twin")
    S_churn: float = _setting("S_churn")
    S_min: float = _setting("S_min")
    S_max: float = _setting("S_max")
    S_noise: float = _setting("S_noise")
    churn_rule: str | None = _setting("churn_rule")
    afs: bool = _setting("afs")
    denoise_to_zero: bool = _setting("denoise_to_zero")
    adaptive_tau: float | None = _setting("adaptive_tau")
    pc_snr: float = _setting("pc_snr")
    pc_stochastic: bool = _setting("pc_stochastic")
    solver_options: dict[str, Any] = _setting("solver_options")
    dtype: torch.dtype = _setting("dtype")

    def __post_init__(self) -> None:
        for one in FIELDS:
            object.__setattr__(self, one.name, checked(one, getattr(self, one.name)))
        if self.guidance is None:
            self._leave_out_guidance()
        ends = (self.sigma_min, self.sigma_max)
        check_schedule(self.levels, self.steps, *ends, self.rho)
        if self.levels != "discrete":  # that one needs the network
            make_schedule(self.levels, self.steps, *ends, self.rho)
        self.solver_for(None, None)
        if self.S_min > self.S_max:
            raise ValueError(f"S_min {self.S_min:g} exceeds S_max {self.S_max:g}: swap them.")
        for forbidden, sentence in CONFLICTS:
            if forbidden(self):
                raise ValueError(sentence)
        if self.erk is not None:
            self._check_erk()

    def _leave_out_guidance(self) -> None:
        """Set guidance, which was not given, to 1; ValueError for what works on it alone.

        A guidance of 1 that was given is one of several weights: there these do nothing.
        """
        alone = {"guidance_interval (--guidance-interval)": self.guidance_interval is not None}
        alone |= {"erk_proj (--erk-proj)": self.erk_proj}
        alone |= {"guidance_kind (--guidance-kind)": self.guidance_kind != "cfg"}
        for name, is_given in alone.items():
            if is_given:
                raise ValueError(
                    f"{name} needs model guidance: give guidance and a guide, or leave it out."
                )
        object.__setattr__(self, "guidance", 1.0)

    def _check_erk(self) -> None:
        for name in ("w_stiff", "w_con", "erk_scale"):
            usual = field(name).default
            if getattr(self, name) != usual:
                raise ValueError(
                    f"erk (--erk) takes the place of ERK-Guid's weights: leave {name} "
                    f"({field(name).option}) at {usual}, or leave out erk."
                )

    @property
    def levels(self) -> str | tuple[float, ...]:
        """The noise levels, or the name of the schedule: by default the solver's published one."""
        if self.schedule is None:
            return published_schedule(self.solver)
        return self.schedule  # type: ignore[return-value]  # levels are a tuple since construction

    def sigmas(self, model: Any = None) -> Tensor:
        """Return the noise levels, [N + 1] in `state_dtype` on the CPU.

        As in EDM's sampler they stay within model.sigma_min and model.sigma_max and become levels
        that the model knows, model.round_sigma; a model without these takes any level. Levels that
        are equal after rounding are one level, except with S_churn: there each is a step that
        adds noise.
        """
        levels = make_schedule(self.levels, self.steps, *self._ends(model), self.rho, model)
        if self.denoise_to_zero and levels[-1] > 0:
            levels = torch.cat([levels, levels.new_zeros(1)])
        if hasattr(model, "round_sigma"):
            levels = model.round_sigma(levels)
        levels = levels.to(self.state_dtype(model))
        differs = levels[1:] != levels[:-1]
        if self.S_churn > 0:
            differs |= levels[1:] > 0
        return levels[torch.cat([differs.new_ones(1), differs])]

    def solver_for(self, sigmas: Tensor | None, model: Any) -> Solver:
        """Return the solver, bound to the noise levels of a run, [N + 1]."""
        if not callable(self.solver):
            solver = make_solver(self.solver, self.solver_options, sigmas, self._ends(model))
        elif self.solver_options:
            raise ValueError(
                "solver_options are for named solvers: bind the options of a function with "
                "functools.partial."
            )
        else:
            solver = self.solver
        return analytic_first(solver) if self.afs else solver

    def drift(
        self,
        model: Denoiser,
        labels: Tensor | None = None,
        guide_model: Denoiser | None = None,
        guide_labels: Tensor | None = None,
    ) -> GuidedDrift:
        """Return the drift of `model` with these settings' model guidance (see `GuidedDrift`)."""
        shared = (model, labels, guide_model, self.guidance, self.guidance_interval, guide_labels)
        if self.erk_proj:
            return ProjectedDrift(*shared, w_stiff=self.w_stiff, embedded=self.solver == "heun")
        if self.guidance_kind == "apg":
            apg = {name: getattr(self, f"apg_{name}") for name in ("eta", "threshold", "momentum")}
            return ApgDrift(*shared, **apg)
        if self.guidance_kind == "cfg++":
            return CfgPlusPlusDrift(*shared, sigmas=self.sigmas(model))
        return GuidedDrift(*shared)

    def exact_drift(
        self,
        model: Denoiser,
        labels: Tensor | None,
        guide_model: Denoiser | None,
        guide_labels: Tensor | None = None,
    ) -> GuidedDrift:
        """Return the drift with model guidance and nothing else: the right side of the ODE.

        Raises ValueError for guidance whose drift depends on the steps.
        """
        if self.guidance != 1 and (self.guidance_kind == "cfg++" or self.apg_momentum != 0):
            raise ValueError(
                "with guidance_kind 'cfg++' or apg_momentum the drift depends on the steps, so "
                "there is no converged solution: take 'cfg', or 'apg' without momentum."
            )
        return replace(self, erk_proj=False).drift(model, labels, guide_model, guide_labels)

    def correction(self, sigmas: Tensor, model: Any = None) -> ErkGuid | Correction | None:
        """Return what corrects the solver's answers; None without ERK-Guid or with ERK-Proj.

        Parameters
        ----------
        sigmas
            Noise levels of the run, [N + 1].
        model
            The denoiser, for the ends of its noise levels.

        Raises
        ------
        ValueError
            For a correction for other noise levels.
        """
        if self.erk is None:
            if self.w_stiff == 0 or self.erk_proj:
                return None
            return ErkGuid(self.w_stiff, self.w_con, self.erk_scale)
        if not isinstance(self.erk, Correction):
            return auto(self.solver_for(sigmas, model), sigmas)
        self.erk.check_levels(sigmas)
        return self.erk

    def state_dtype(self, model: Any = None) -> torch.dtype:
        """Return the dtype of the state: `dtype`, but float64 where noise is injected as in EDM.

        Raises ValueError for float64 on a device that has none.
        """
        churned = self.S_churn > 0 and self._churns_as_edm(model)
        dtype = torch.float64 if churned else self.dtype
        check_double(dtype, getattr(model, "device", None))
        return dtype

    def _churns_as_edm(self, model: Any) -> bool:
        return (self.churn_rule or getattr(model, "churn_rule", "edm2")) == "edm"

    def churn(self, model: Any, intervals: int, randn_like: Noise) -> Churn | None:
        """Return EDM's noise injection for a run of N intervals, or None if it is off."""
        if self.S_churn == 0:
            return None
        gamma = min(self.S_churn / intervals, math.sqrt(2) - 1)
        round_sigma = getattr(model, "round_sigma", None)
        every_step = self._churns_as_edm(model)
        return Churn(
            gamma, self.S_min, self.S_max, self.S_noise, randn_like, round_sigma, every_step
        )

    def identity(self) -> dict[str, Any]:
        """Return all settings as JSON holds them: equal for equal samples from equal inputs.

        Raises ValueError for a function that no module names: another one would look the same.
        """
        values = {one.name: _plain(getattr(self, one.name)) for one in FIELDS}
        if self.guidance == 1:
            values["guidance_interval"] = None
        unused = {*GUIDANCE} - {*self._rule()} | {*(("churn_rule",) if self.S_churn == 0 else ())}
        values = {name: value for name, value in values.items() if name not in unused}
        return values | {"schedule": _plain(self.levels)}

    def _rule(self) -> dict[str, Any]:
        """Return what is used of the settings GUIDANCE: nothing for CFG and Autoguidance."""
        kind = "cfg" if self.guidance == 1 else self.guidance_kind
        used = {"cfg": (), "cfg++": GUIDANCE[:1], "apg": GUIDANCE}[kind]
        return {name: getattr(self, name) for name in used}

    def recipe(self) -> dict[str, Any]:
        """Return the settings RECIPE, which a correction depends on, as JSON holds them.

        A rule of model guidance other than CFG's is added, with what it uses. Defaults of the
        solver and of the schedule are filled in. Raises ValueError for a solver
        that is a function: a card could not name it.
        """
        if callable(self.solver):
            raise ValueError("a card knows solvers by name: give a solver of docs/solvers.md.")
        values = {name: _plain(getattr(self, name)) for name in RECIPE}
        if self.guidance == 1:
            values["guidance_interval"] = None
        values["solver_options"] = default_options(self.solver) | self.solver_options
        schedule = values["schedule"] = _plain(self.levels)
        if not isinstance(schedule, str):
            values |= {"steps": len(schedule) - 1, "rho": None}
        elif self.rho is None:
            values["rho"] = SCHEDULES[schedule][1]
        return values | self._rule()

    def _ends(self, model: Any) -> tuple[float, float]:
        """Return (sigma_min, sigma_max) within what the model knows."""
        return (
            max(self.sigma_min, getattr(model, "sigma_min", 0.0)),
            min(self.sigma_max, getattr(model, "sigma_max", math.inf)),
        )


def check_double(dtype: torch.dtype, device: Any) -> None:
    """Raise ValueError for float64 on a device that has none."""
    kind = torch.device("cpu" if device is None else device).type
    if dtype == torch.float64 and kind in NO_DOUBLE:
        raise ValueError(
            f"{kind} has no float64, which dtype=torch.float64 and noise injected as in EDM need: "
            "take torch.float32 and churn_rule='edm2' (--churn-rule edm2), or the CPU."
        )


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: lists, text for infinities, dtypes and functions."""
    if isinstance(value, Correction):
        content = json.dumps(dataclasses.astuple(value))
        return f"correction {hashlib.sha256(content.encode()).hexdigest()}"
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value) if isinstance(value, float | torch.dtype) else _named(value)


def _named(function: Any) -> Any:
    """Return module and name of a function; of a partial, also the arguments that it binds."""
    if isinstance(function, functools.partial):
        keywords = {key: _plain(plain(one)) for key, one in function.keywords.items()}
        return [_named(function.func), [_plain(plain(one)) for one in function.args], keywords]
    module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
    try:
        known = operator.attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError):  # a lambda, a function in a function, an object
        known = None
    if known is not function or module == "__main__":
        raise ValueError(
            f"{shown(function)} has no name to be recognized by, so its results cannot be kept or "
            "continued: define it by def in a module that is imported."
        )
    return f"{module}.{name}"


def check_settings(given: Iterable[str], function: Callable[..., Any]) -> None:
    """Raise TypeError for a name that is no setting, with the arguments that a function takes."""
    names = {**inspect.signature(function).parameters, **Settings.__dataclass_fields__}
    names.pop("settings")
    check_names(given, names, function.__name__)

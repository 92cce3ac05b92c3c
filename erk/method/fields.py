"""The declaration of all settings: names, defaults, help. Imports no torch, so help is fast.

The dataclass `Settings` takes its defaults from here. The command line, YAML rows, the identity
of a run, the recipe of a card and the table in the docs derive from `fields()`.
"""

import math
from collections.abc import Callable, Set
from typing import Any, NamedTuple

PUBLISHED_SCHEDULES = {
    "euler": "polynomial",
    "heun": "edm",
    "dpm2": "polynomial",
    "ipndm": "polynomial",
    "ipndm_v": "polynomial",
    "deis": "time_uniform",
    "dpmpp": "logsnr",
    "unipc": "logsnr",
}
"""The schedule that each solver is published with."""
SCHEDULE_NAMES = ("edm", "polynomial", "logsnr", "time_uniform", "discrete")
SCALE_NAMES = ("quadratic", "abs", "alpha")
GUIDANCE_KINDS = ("cfg", "apg", "cfg++")
CHURN_RULES = ("edm", "edm2")
"""edm: float64 state and noise, drawn at every step; edm2: drawn only in [S_min, S_max]."""

SOLVER, MODEL_GUIDANCE, ERK_GUID = "Sampling", "Model guidance", "ERK-Guid"
BASELINES, CHURN, PYTHON = "Baselines", "Stochastic sampling", "In Python only"

LOWEST, HIGHEST = 1e-12, 1e12
"""Range of noise levels: their squares and logarithms are far from the limits of float64."""
MOST_STEPS = 1_000_000


class Field(NamedTuple):
    """The declaration of one setting."""

    name: str
    default: Any
    help: str  # one sentence, without the default
    group: str  # heading of help pages and tables
    kind: type = float  # of one value: str, int, float or bool
    symbol: str = ""  # of the paper or of EDM
    unit: str = ""  # "sigma", "intervals", ...
    spelling: str | None = None  # on the command line; None: the name with dashes; "": Python only
    metavar: str = ""  # of the option; "": follows from kind and choices
    choices: tuple[str, ...] = ()  # the only names that are valid; (): any text
    multiple: bool = False  # whether the option may be repeated
    note: str = ""  # the default in words, where help pages need them
    form: str = "value"  # of what Python passes: a key of `erk.method.values.FORMS`
    least: float | None = None  # the smallest number
    above: float | None = None  # what a number must exceed
    most: float | None = None  # the largest number
    finite: bool = True  # whether infinity is refused
    needs: str = ""  # the setting without which it has no effect

    @property
    def option(self) -> str:
        """The spelling on the command line; "" for settings of Python alone."""
        if self.spelling is None:
            return "--" + self.name.replace("_", "-")
        return self.spelling


FIELDS = (
    Field("solver", "heun", f"Solver: {', '.join(PUBLISHED_SCHEDULES)} (docs/solvers.md).", SOLVER,
          str, metavar="NAME", choices=tuple(PUBLISHED_SCHEDULES), form="solver"),
    Field("schedule", None, f"Noise schedule: {', '.join(SCHEDULE_NAMES)}; or noise levels "
          "80,20,5,0.", SOLVER, str, "sigma_i", metavar="NAME|LIST",
          note="the solver's published one", form="schedule"),
    Field("steps", 32, "Intervals of the schedule.", SOLVER, int, "N", "intervals", least=1,
          most=MOST_STEPS),
    Field("sigma_min", 0.002, "Lowest noise level above 0.", SOLVER, symbol="sigma_min",
          unit="sigma", least=LOWEST, most=HIGHEST),
    Field("sigma_max", 80.0, "Highest noise level.", SOLVER, symbol="sigma_max", unit="sigma",
          least=LOWEST, most=HIGHEST),
    Field("rho", None, "Exponent of the schedule.", SOLVER, symbol="rho", note="the schedule's",
          above=0),
    Field("guidance", None, "Weight of model guidance (CFG, Autoguidance); 1 is off.",
          MODEL_GUIDANCE, symbol="w", note="1", least=-1e6, most=1e6),
    Field("guidance_interval", None, "Apply model guidance only for LO < sigma <= HI.",
          MODEL_GUIDANCE, str, unit="sigma", metavar="LO,HI", form="interval"),
    Field("guidance_kind", "cfg", "Rule of model guidance: CFG's, adaptive projected guidance, or "
          "CFG++ with a weight from 0 to 1.", MODEL_GUIDANCE, str, choices=GUIDANCE_KINDS),
    Field("apg_eta", 0.0, "APG: weight of guidance along the denoised sample; 1 is CFG's.",
          MODEL_GUIDANCE, symbol="eta", least=-1e6, most=1e6),
    Field("apg_threshold", 0.0, "APG: largest norm of the guidance per sample; 0 is no limit.",
          MODEL_GUIDANCE, symbol="r", unit="data", least=0),
    Field("apg_momentum", 0.0, "APG: weight of the guidance of earlier steps, such as -0.5.",
          MODEL_GUIDANCE, symbol="beta", least=-1, most=1),
    Field("w_stiff", 0.0, "Strength of ERK-Guid; 0 is off.", ERK_GUID, symbol="w_stiff", least=0),
    Field("w_con", 0.5, "Stiffness above which ERK-Guid acts.", ERK_GUID, symbol="w_con",
          unit="rho", least=0, needs="w_stiff"),
    Field("erk_scale", "quadratic", "Growth of the correction with z = w_stiff |h| rho (Fig. 6b).",
          ERK_GUID, str, choices=SCALE_NAMES, needs="w_stiff"),
    Field("erk_proj", False, "Use ERK-Proj instead of ERK-Guid (Eq. 59-61).", BASELINES, bool),
    Field("erk", None, "ERK-Guid without weights: 'auto' adds a multiple of the solver's embedded "
          "difference (docs/howto/without-knobs.md).", ERK_GUID, str, choices=("auto",),
          form="correction"),
    Field("twin", None, "A pair for ERK-Guid: (step, previous step) -> (twin, h).", PYTHON,
          spelling="", form="twin"),
    Field("S_churn", 0.0, "Amount of EDM's noise injection, for euler, heun and dpm2; 0 is off.",
          CHURN, symbol="S_churn", least=0),
    Field("S_min", 0.0, "Lowest noise level at which noise is injected.", CHURN, unit="sigma",
          least=0, needs="S_churn"),
    Field("S_max", math.inf, "Highest noise level at which noise is injected.", CHURN,
          unit="sigma", least=0, finite=False, needs="S_churn"),
    Field("S_noise", 1.0, "Scale of the injected noise.", CHURN, least=0, needs="S_churn"),
    Field("churn_rule", None, "Draw the injected noise as edm (float64, at every step) or as edm2.",
          CHURN, str, choices=CHURN_RULES, note="that of the network's release", needs="S_churn"),
    Field("afs", False, "Analytic first step: one evaluation less.", SOLVER, bool),
    Field("denoise_to_zero", False, "After noise levels that end above 0: add an "
          "Euler step to 0.", SOLVER, bool),
    Field("adaptive_tau", None, "Halve Heun's steps where stiffness exceeds TAU (Table 10).",
          BASELINES, symbol="tau", metavar="TAU", above=0),
    Field("pc_snr", 0.0, "Signal-to-noise ratio of the Langevin corrector; 0 is off (Table 11).",
          BASELINES, symbol="r", least=0),
    Field("pc_stochastic", True, "Use the Langevin corrector without its noise.", BASELINES, bool,
          spelling="--pc-deterministic", needs="pc_snr"),
    Field("solver_options", {}, "An option of the solver, such as order=3; may be repeated.",
          SOLVER, str, spelling="--solver-option", metavar="NAME=VALUE", multiple=True,
          form="options"),
    Field("dtype", "float32", "dtype of the state; networks see float32.", PYTHON, spelling="",
          form="dtype"),
)  # fmt: skip


def fields() -> tuple[Field, ...]:
    """Return the declarations of all settings, in the order of `Settings`.

    A `bool` is a flag that sets the opposite of its default: `--pc-deterministic` sets
    pc_stochastic to False. Text that is not the value itself is parsed by
    `erk.generation.options`: `schedule` (a name, or noise levels with commas),
    `guidance_interval` (two numbers with a comma) and `solver_options` (NAME=VALUE, `multiple`).
    """
    return FIELDS


def field(name: str) -> Field:
    """Return the declaration of one setting; KeyError for an unknown name."""
    return {one.name: one for one in FIELDS}[name]


def check_needs(
    given: Set[str], spelling: Callable[[Field], str] = lambda field: field.name
) -> None:
    """Raise ValueError for a setting that is given without the one that it needs.

    A card, and `erk` for ERK-Guid, have checks of their own. A sweep may give both: w_stiff 0 with
    w_con 0.3 is plain.
    """
    for one in FIELDS:
        enough = {one.needs, "card", *(["erk"] if one.group == ERK_GUID else [])}
        if one.name in given and one.needs and given.isdisjoint(enough):
            raise ValueError(
                f"{spelling(one)} has no effect without {spelling(field(one.needs))}: give both, "
                "or neither."
            )
    if "guide_model" in given and given.isdisjoint({"guidance", "card"}):
        raise ValueError("guide_model has no effect without guidance: give both, or neither.")

"""Combinations of settings that are refused, each with one sentence."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from erk.method.fields import field
from erk.method.solvers import ONE_STEP, is_one_step

if TYPE_CHECKING:
    from erk.method.settings import Settings

ONE_EVALUATION = ("euler", "ipndm", "ipndm_v", "deis", "dpmpp", "unipc")
"""The named solvers that evaluate the network once per step."""
THRESHOLDED = tuple(field(name).default for name in ("w_con", "erk_scale", "twin"))
APG = tuple(field(name).default for name in ("apg_eta", "apg_threshold", "apg_momentum"))


def ends_at_zero(settings: "Settings") -> bool:
    """Return whether the noise levels end at 0 without `denoise_to_zero`."""
    levels = settings.levels
    return levels == "edm" if isinstance(levels, str) else levels[-1] == 0


CONFLICTS: tuple[tuple[Callable[["Settings"], bool], str], ...] = (
    (
        lambda s: s.w_stiff > 0 and s.S_churn > 0,
        "ERK-Guid (w_stiff > 0) needs a deterministic step: set S_churn to 0.",
    ),
    (
        lambda s: s.S_churn > 0 and not is_one_step(s.solver),
        "S_churn adds noise between the steps, and this solver continues its earlier steps as if "
        f"there were none: take {', '.join(ONE_STEP[:-1])} or {ONE_STEP[-1]}, or set S_churn to 0.",
    ),
    (
        lambda s: s.guidance_kind != "apg" and (s.apg_eta, s.apg_threshold, s.apg_momentum) != APG,
        "apg_eta, apg_threshold and apg_momentum are for guidance_kind 'apg': give it, or leave "
        "them out.",
    ),
    (
        lambda s: s.apg_momentum != 0 and (s.solver not in ONE_EVALUATION or s.pc_snr > 0),
        "apg_momentum counts each step once, so the solver must evaluate the network once per "
        f"step: take {', '.join(ONE_EVALUATION[:-1])} or {ONE_EVALUATION[-1]}, without the "
        "Langevin corrector, or set apg_momentum to 0.",
    ),
    (
        lambda s: s.guidance_kind == "cfg++" and not 0 <= s.guidance <= 1,
        "guidance_kind 'cfg++' takes a guidance from 0 to 1, which corresponds to CFG's 1 and "
        "more: give one such as 0.6.",
    ),
    (
        lambda s: (
            s.guidance_kind == "cfg++"
            and (s.S_churn > 0 or s.pc_snr > 0 or s.adaptive_tau is not None)
        ),
        "guidance_kind 'cfg++' is defined for steps along the schedule: leave out S_churn, the "
        "Langevin corrector and adaptive_tau.",
    ),
    (
        lambda s: s.erk_proj and s.guidance_kind != "cfg",
        "ERK-Proj and guidance_kind are two rules of model guidance: leave one of them out.",
    ),
    (
        lambda s: s.erk_proj and s.w_stiff == 0,
        "ERK-Proj (erk_proj) has no effect with w_stiff 0: give w_stiff > 0.",
    ),
    (
        lambda s: s.erk_proj and (s.w_con, s.erk_scale, s.twin) != THRESHOLDED,
        "ERK-Proj (erk_proj) uses w_stiff alone: leave out w_con, erk_scale and twin.",
    ),
    (
        lambda s: s.twin is not None and s.adaptive_tau is not None,
        "adaptive steps (adaptive_tau) measure the stiffness of Heun's pair: leave out twin.",
    ),
    (
        lambda s: s.w_stiff > 0 and (s.pc_snr > 0 or s.adaptive_tau is not None),
        "ERK-Guid, adaptive steps and the Langevin corrector exclude each other: set w_stiff to 0.",
    ),
    (
        lambda s: (
            s.adaptive_tau is not None and not (s.solver == "heun" and s.S_churn == s.pc_snr == 0)
        ),
        "adaptive steps (adaptive_tau > 0) are defined for the plain heun solver.",
    ),
    (
        lambda s: s.afs and s.adaptive_tau is not None,
        "adaptive steps begin with an evaluation of the network: leave out afs.",
    ),
    (
        lambda s: s.denoise_to_zero and ends_at_zero(s),
        "the noise levels end at 0 already: leave out denoise_to_zero.",
    ),
    (
        lambda s: s.rho is not None and not isinstance(s.levels, str),
        "rho is the exponent of a named schedule: leave it out of a run with a list of noise "
        "levels.",
    ),
    (
        lambda s: s.erk is not None and s.twin is not None,
        "erk is computed for the solver's pair: leave out twin.",
    ),
    (
        lambda s: (
            s.erk is not None and (s.S_churn > 0 or s.pc_snr > 0 or s.adaptive_tau is not None)
        ),
        "erk needs the plain, deterministic steps that its coefficients are for: leave out "
        "S_churn, the Langevin corrector and adaptive_tau.",
    ),
)
"""What is forbidden, and the sentence that says what to change."""


def check_given(given: Collection[str], settings: "Settings") -> None:
    """Raise ValueError for a setting that was given, maybe its default, and has no effect.

    All settings together, as `vars(settings)` are, say nothing but what they are.
    """
    if {*given} >= {*settings.__dataclass_fields__}:
        return
    if "denoise_to_zero" in given and not settings.denoise_to_zero and ends_at_zero(settings):
        raise ValueError(
            "denoise_to_zero=False has no effect, because the noise levels end at 0: leave it out, "
            "or take levels that end above 0, such as schedule='polynomial'."
        )
    levels = settings.levels
    if "steps" in given and not isinstance(levels, str) and settings.steps != len(levels) - 1:
        raise ValueError(
            f"the schedule lists {len(levels)} noise levels, so it has {len(levels) - 1} steps and "
            f"not {settings.steps}: leave out steps."
        )

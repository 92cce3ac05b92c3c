"""Combinations of settings that are refused, each with one sentence."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from erk.method.fields import field
from erk.method.solvers import ONE_STEP, is_one_step

if TYPE_CHECKING:
    from erk.method.settings import Settings

ONE_EVALUATION = ("euler", "ipndm", "ipndm_v", "deis", "dpmpp", "unipc")
"""The named solvers that evaluate the network once per step."""
APG = tuple(field(name).default for name in ("apg_eta", "apg_threshold", "apg_momentum"))

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
        lambda s: s.denoise_to_zero and s.levels == "edm",
        "the 'edm' schedule ends at 0 already: leave out denoise_to_zero.",
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

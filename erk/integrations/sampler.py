"""What every integration applies: weights, `auto` or a card, as `Settings`, and a card's levels.

An integration is a scheduler, a sampler or a node of another package. It knows its solver; it may
know neither the network nor the weight of model guidance.
"""

from typing import Any

import torch
from torch import Tensor

from erk.calibration.card import open_card
from erk.method.conflicts import ends_at_zero
from erk.method.corrections import Correction
from erk.method.settings import Settings

ANY = "erk.sample(card=...)"


def settings_for(
    integration: str,
    solvers: tuple[str, ...],
    card: Any = None,
    erk: str | None = None,
    w_stiff: float | None = None,
    w_con: float | None = None,
    guidance: float = 1.0,
) -> Settings:
    """Return the settings that an integration applies.

    Parameters
    ----------
    integration
        Its name, for messages.
    solvers
        Names of the solvers that it can run, the first without a card.
    card
        A `Card`, its content or its path.
    erk, w_stiff, w_con
        The correction without a card; None: not given.
    guidance
        Weight of the model guidance that the integration works with.

    Raises
    ------
    ValueError
        For invalid values, for a card of another solver or guidance, and for arguments that
        contradict the card.
    """
    weights: dict[str, Any] = {"w_stiff": w_stiff, "w_con": w_con}
    if card is None:
        given = {key: value for key, value in weights.items() if value is not None}
        return Settings(solver=solvers[0], erk=erk, **given)
    card = open_card(card)
    name = card.settings.solver
    if name not in solvers:
        raise ValueError(
            f"the card is for the solver {name}, and {integration} runs {' or '.join(solvers)}: "
            f"calibrate with solver='{solvers[0]}' (--solver {solvers[0]}), or sample with {ANY}."
        )
    card.check_host(integration)
    return Settings(**card.sampler_for({"erk": erk, "guidance": guidance, **weights}))


def levels_of(settings: Settings, model: Any = None) -> Tensor:
    """Return the noise levels of a card's settings, [N + 1] float64.

    `model` limits the levels of a schedule that the card only names.
    """
    if not isinstance(settings.erk, Correction):
        return settings.sigmas(model).double()
    known = [level for level in settings.erk.sigmas if level > 0]
    last = [0.0] if settings.denoise_to_zero or ends_at_zero(settings) else []
    return torch.tensor(known + last, dtype=torch.float64)

"""The command `calibrate`: search for the best sampler for a network and write it to a card."""

from typing import Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command
from erk.method.fields import field

FIXED = ("solver", "schedule", "steps", "rho", "afs", "denoise_to_zero")
"""Settings that are searched unless they are given."""
RULE = ("guidance_kind", "apg_eta", "apg_threshold")
"""The rule of model guidance; with momentum there is no ODE to calibrate for."""


def _free(name: str) -> Any:
    changes: dict[str, Any] = {} if field(name).kind is bool else {"default": None}
    if name == "schedule":  # no default: it is searched
        changes["help"] = field(name).help
    return shared.setting(name, **changes)


def search_options(*corrections: Any) -> Any:
    """Return a decorator that adds the options of a search, and those of its corrections."""
    groups = (
        shared.network_options(*map(shared.setting, RULE)),
        cloup.option_group(
            "Calibration",
            cloup.option("--nfe", type=click.IntRange(1), default=8,
                         help="Largest number of network evaluations per image."),
            cloup.option("--seeds", type=click.IntRange(8), default=32, metavar="N",
                         help="Number of seeds for the fits; as many others are for the "
                         "choice, and as many again for the reported error."),
            *corrections,
            cloup.option("--evaluations", type=click.IntRange(8), default=128, metavar="N",
                         help="Network evaluations per reference solution."),
            cloup.option("--out", metavar="FILE",
                         help="Card to write.  [default: NETWORK-NFE.card.json]"),
            shared.dry_run_option,
        ),
        cloup.option_group(
            "Sampling (options that are given are not searched)",
            *map(_free, FIXED),
            shared.setting("solver_options"),
            *map(shared.setting, ("sigma_min", "sigma_max")),
        ),
        shared.label_options(),
        shared.device_options(shared.batch_option(32)),
    )  # fmt: skip

    def decorate(function: Any) -> Any:
        for group in reversed(groups):
            function = group(function)
        return function

    return decorate


@command(
    "erk calibrate --preset digits --nfe 8",
    "erk generate --preset digits --card digits-8.card.json --seeds 0-99",
)
@search_options(
    cloup.option("--correction", "corrections", multiple=True, metavar="NAME", help="A kind of "
                 "correction that competes: none, auto, weights (w_stiff and w_con), stepwise, "
                 "end-to-end; may be repeated.  "
                 "[default: auto, stepwise, end-to-end]"),
    cloup.option("--direction", "directions", multiple=True, metavar="NAME", help="A direction "
                 "that gets coefficients: embedded, drift, pair, change, bend, stiff; may be "
                 "repeated.  [default: all but pair]"),
)  # fmt: skip
def main(**options: Any) -> None:
    """Search for the best sampler for a network, its guidance and a number of evaluations.

    Solvers, schedules, noise levels and corrections compete in their distance to the converged
    solution from the same noise; neither FID nor real images are used. The errors on the card are
    those on seeds that neither the fit nor the choice has used. After an interruption the same
    command resumes.
    """
    from erk.commands.calibrating import run_calibration

    run_calibration(options)


if __name__ == "__main__":
    main()

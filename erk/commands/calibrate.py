"""The command `calibrate`: fit a solver's corrections to a network and write them to a card."""

from typing import Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command


@command(
    "erk calibrate --preset digits --steps 8",
    "erk generate --preset digits --steps 8 --erk digits-heun-8.card.json --seeds 0-99",
)
@shared.network_options()
@shared.sampling_options(32)
@cloup.option_group(
    "Calibration",
    cloup.option("--direction", "directions", multiple=True, metavar="NAME", help="A direction of "
                 "the correction: embedded, drift, pair, change, bend, stiff; may be repeated.  "
                 "[default: all but pair]"),
    cloup.option("--evaluations", type=click.IntRange(8), metavar="N",
                 help="Network evaluations per reference solution.  [default: 128]"),
    cloup.option("--out", metavar="FILE", help="The card.  [default: "
                 "NETWORK-SOLVER-STEPS.card.json]"),
    shared.dry_run_option,
)  # fmt: skip
@shared.label_options(
    cloup.option("--seeds", metavar="LIST", default="900000-900031", help="Seeds to calibrate on."),
    cloup.option("--held-out", metavar="LIST", default="910000-910127",
                 help="Other seeds, for the error before and after."),
)  # fmt: skip
@shared.device_options(shared.batch_option(32))
def main(**options: Any) -> None:
    """Calibrate a solver's corrections for a network, schedule and guidance; write a card.

    At every step the multiples of a few directions are fitted that bring samples nearest to the
    converged solution from the same noise; the error before and after is measured on other seeds.
    After an interruption the same command goes on and gives the same card.
    """
    from erk.commands.calibrating import run_calibration

    run_calibration(options)


if __name__ == "__main__":
    main()

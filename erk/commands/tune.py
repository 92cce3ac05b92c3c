"""The command `tune`: choose w_stiff and w_con by the solver's held-out error, without FID."""

from typing import Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command


@command(
    "erk tune --preset digits --solver heun --steps 8",
    "erk tune --preset toy --steps 8 --check     # toy: the exact 2-D mixture",
)
@shared.network_options()
@shared.sampling_options(32)
@cloup.option_group(
    "Tuning",
    cloup.option("--evaluations", type=click.IntRange(min=16), metavar="N", help="Network "
                 "evaluations per converged solution.  [default: 4 per step, at least 128]"),
    cloup.option("--check", is_flag=True, help="Run the whole grid on the held-out seeds, too, and "
                 "report how near the choice comes to its best pair."),
    cloup.option("--out", metavar="FILE.json", help="The card; its curve goes to FILE.png.  "
                 "[default: results/tune/NAME-SOLVER-STEPS-KEY.json]"),
    shared.dry_run_option,
)  # fmt: skip
@shared.label_options(
    cloup.option("--seeds", metavar="LIST", default="200000-200255",
                 help="Seeds that the weights are chosen on."),
    cloup.option("--held-out", metavar="LIST", default="210000-210255",
                 help="Other seeds, which the choice is judged on."),
)  # fmt: skip
@shared.device_options(shared.batch_option(64))
def main(**options: Any) -> None:
    """Choose ERK-Guid's w_stiff and w_con for a model, a solver and a number of steps.

    The measure is the distance to the converged solution of the ODE from the same noise: no FID,
    no real images. Pairs of weights compete on some seeds; the winner is judged on others.
    After an interruption the same command goes on.
    """
    from erk.commands.calibrating import run_tuning

    run_tuning(options)


if __name__ == "__main__":
    main()

"""The command `calibrate`: fit a solver's corrections to a network and write them to a card.

    erk calibrate --preset digits --steps 8
    python generate.py --preset digits --steps 8 --erk digits-heun-8.card.json

Nothing is imported that loads PyTorch until the options are read, so that --help answers at once.
"""

from typing import Any

import click

from erk.commands.cli import CONTEXT, clean_exit


@click.command(context_settings=CONTEXT)
@click.option("--preset", metavar="NAME", help="Network, guide and guidance by name.")
@click.option("--net", metavar="FILE", help="Network, in place of the preset's.")
@click.option("--gnet", metavar="FILE", help="Guiding network.")
@click.option("--guidance", type=float, help="Weight of model guidance.  [default: the preset's]")
@click.option("--guidance-interval", metavar="LO,HI", help="Where model guidance acts.")
@click.option("--solver", default="heun", metavar="NAME", help="As for generate.py.")
@click.option("--solver-option", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--schedule", default="edm", metavar="NAME|LIST", help="As for generate.py.")
@click.option("--steps", type=int, default=8, help="Intervals of the schedule.")
@click.option("--sigma-min", type=float, default=0.002, help="Lowest noise level above 0.")
@click.option("--sigma-max", type=float, default=80.0, help="Highest noise level.")
@click.option("--rho", type=float, help="Exponent of the schedule.  [default: its own]")
@click.option("--afs", is_flag=True, help="Analytic first step.")
@click.option("--denoise-to-zero", is_flag=True, help="A last Euler step to sigma = 0.")
@click.option("--direction", "directions", multiple=True, metavar="NAME",
              help="What the correction is made of: embedded, drift, pair, change, bend, stiff; "
              "may be repeated.  [default: all but pair]")  # fmt: skip
@click.option("--seeds", metavar="LIST", default="900000-900255", help="Seeds to calibrate on.")
@click.option("--held-out", metavar="LIST", default="910000-910511",
              help="Other seeds, for the error before and after.")  # fmt: skip
@click.option("--class", "class_idx", type=int, metavar="N", help="One class for all.")
@click.option("--labels", metavar="random|balanced|FILE", default="random",
              help="Class of each sample.")  # fmt: skip
@click.option("--evaluations", type=click.IntRange(8), metavar="N",
              help="Of the network on a reference path.  [default: 128]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=32, help="Samples at a time.")
@click.option("--noise", type=click.Choice(["device", "cpu"]), default="device",
              help="Where noise is drawn.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Where to compute.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"]),
              default="auto", help="What networks compute in.")  # fmt: skip
@click.option("--out", metavar="FILE", help="The card.  [default: NETWORK-SOLVER-STEPS.card.json]")
@click.option("--dry-run", is_flag=True, help="Say what it would cost and stop.")
@click.option("--offline", is_flag=True, help="Never download.")
@clean_exit
def main(**options: Any) -> None:
    """Calibrate a solver's corrections for a network, schedule and guidance; write a card.

    At every step the multiples of a few directions are fitted that bring samples nearest to the
    converged solution from the same noise; the error before and after is measured on other seeds.
    After an interruption the same command goes on and gives the same card.
    """
    from erk.calibration import job as calibrate_job

    calibrate_job.run(options)


if __name__ == "__main__":
    main()

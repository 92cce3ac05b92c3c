"""The command `tune`: choose w_stiff and w_con by the solver's held-out error, without FID.

    erk tune --preset digits --solver heun --steps 8

Nothing is imported that loads PyTorch until the options are read, so that --help answers at once.
"""

from pathlib import Path
from typing import Any

import click

from erk.commands.cli import CONTEXT, clean_exit


@click.command(context_settings=CONTEXT)
@click.option("--preset", metavar="NAME", help="Network, guide and guidance by name; 'toy' is the "
              "exact 2-D toy.")  # fmt: skip
@click.option("--net", metavar="FILE", help="Network: a path, https:// or hf://owner/repo/file; "
              "takes the place of the preset's.")  # fmt: skip
@click.option("--gnet", metavar="FILE", help="Guiding network.")
@click.option("--guidance", type=float, help="Weight of model guidance; 1 is off.  "
              "[default: the preset's, else 1]")  # fmt: skip
@click.option("--guidance-interval", metavar="LO,HI",
              help="Apply model guidance only for LO < sigma <= HI.")  # fmt: skip
@click.option("--solver", default="heun", metavar="NAME", help="As of generate.py.")
@click.option("--solver-option", multiple=True, metavar="NAME=VALUE",
              help="An option of the solver, such as order=3; may be repeated.")  # fmt: skip
@click.option("--schedule", default="edm", metavar="NAME|LIST", help="As of generate.py.")
@click.option("--steps", type=int, default=32, help="Intervals of the schedule.")
@click.option("--sigma-min", type=float, default=0.002, help="Lowest noise level above 0.")
@click.option("--sigma-max", type=float, default=80.0, help="Highest noise level.")
@click.option("--rho", type=float, help="Exponent of the schedule.  [default: the schedule's own]")
@click.option("--afs", is_flag=True, help="Analytic first step: one evaluation less.")
@click.option("--denoise-to-zero", is_flag=True, help="A last Euler step to sigma = 0.")
@click.option("--labels", metavar="random|balanced|FILE", default="random",
              help="Class of each seed, as of generate.py.")  # fmt: skip
@click.option("--class", "class_idx", type=int, metavar="N", help="One class for all seeds.")
@click.option("--seeds", metavar="LIST", default="200000-200255",
              help="Seeds that the weights are chosen on.")  # fmt: skip
@click.option("--held-out", metavar="LIST", default="210000-210255",
              help="Other seeds, that the choice is judged on.")  # fmt: skip
@click.option("--evaluations", type=click.IntRange(min=16), metavar="N", help="Of the network, for "
              "a converged solution.  [default: 4 per step, at least 128]")  # fmt: skip
@click.option("--check", is_flag=True, help="Run the whole grid on the held-out seeds, too, and "
              "tell how near to its best the choice comes.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=64, help="Samples at a time.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Where to compute; auto: CUDA, then MPS, then the CPU.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"]),
              default="auto", help="What networks compute in, as of generate.py.")  # fmt: skip
@click.option("--noise", type=click.Choice(["device", "cpu"]), default="device",
              help="Where noise is drawn.")  # fmt: skip
@click.option("--out", metavar="FILE.json", help="The card; its curve goes to FILE.png.  "
              "[default: results/tune/NAME-SOLVER-STEPS-KEY.json]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it costs and stop.")
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@clean_exit
def main(**options: Any) -> None:
    """Choose ERK-Guid's w_stiff and w_con for a model, a solver and a number of steps.

    The measure is the distance to the converged solution of the ODE from the same noise: no FID,
    no real images. Pairs of weights compete on some seeds; the winner is judged on others.
    After an interruption the same command goes on.
    """
    from erk.calibration import tune_job

    out = options.pop("out")
    if out is not None and Path(out).suffix != ".json":
        raise ValueError(f"--out writes a .json file; call it so, not '{out}'.")
    tune_job.run(options, None if out is None else Path(out))


if __name__ == "__main__":
    main()

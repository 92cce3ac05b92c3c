"""Options that several commands share, in the groups of the help page.

Each option is declared once. Nothing here imports PyTorch, so that help pages appear at once.
"""

from collections.abc import Callable
from typing import Any

import click
import cloup

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])
PRECISIONS = click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"])
RANDOM_OR_FILE = "random|balanced|FILE"

device_option = cloup.option(
    "--device", type=DEVICES, default="auto",
    help="Device to compute on; auto: CUDA, then MPS, then the CPU.",
)  # fmt: skip
offline_option = cloup.option(
    "--offline", is_flag=True, help="Never download; use the files in the cache."
)
precision_option = cloup.option(
    "--precision", type=PRECISIONS, default="auto",
    help="Precision of the networks; auto: fp16 on CUDA where released so, else fp32.",
)  # fmt: skip
noise_option = cloup.option(
    "--noise", type=click.Choice(["device", "cpu"]), default="device",
    help="Device that draws the noise: 'device' as published; 'cpu' gives a seed the same noise "
    "on every device.",
)  # fmt: skip
dry_run_option = cloup.option("--dry-run", is_flag=True, help="Print the cost and stop.")


def network_options(*more: Decorator) -> Decorator:
    """Declare the options of the network, the guide and model guidance, before `more`."""
    return cloup.option_group(
        "Network and model guidance",
        cloup.option(
            "--preset", metavar="NAME",
            help="Network, guide and guidance weight by name (erk presets lists them).",
        ),
        cloup.option(
            "--net", metavar="FILE",
            help="Network, instead of the preset's: a path, https:// or hf://owner/repo[/file].",
        ),
        cloup.option(
            "--gnet", metavar="FILE",
            help="Guide: an unconditional network for CFG, a weaker one for Autoguidance.",
        ),
        cloup.option(
            "--guidance", type=float,
            help="Weight of model guidance; 1 is off.  [default: the preset's, else 1]",
        ),
        cloup.option(
            "--guidance-interval", metavar="LO,HI",
            help="Apply model guidance only for LO < sigma <= HI.",
        ),
        *more,
    )  # fmt: skip


def sampling_options(steps: int, *more: Decorator) -> Decorator:
    """Declare the options of the solver and its noise levels, before `more`."""
    return cloup.option_group(
        "Sampling",
        cloup.option(
            "--solver", default="heun", metavar="NAME",
            help="euler, heun, dpm2, ipndm, ipndm_v, deis, dpmpp or unipc (docs/solvers.md).",
        ),
        cloup.option(
            "--solver-option", multiple=True, metavar="NAME=VALUE",
            help="An option of the solver, such as order=3; may be repeated.",
        ),
        cloup.option(
            "--schedule", default="edm", metavar="NAME|LIST",
            help="edm, polynomial, logsnr, time_uniform, discrete, or noise levels 80,20,5,0.",
        ),
        cloup.option("--steps", type=int, default=steps, help="Intervals of the schedule."),
        cloup.option("--sigma-min", type=float, default=0.002, help="Lowest noise level above 0."),
        cloup.option("--sigma-max", type=float, default=80.0, help="Highest noise level."),
        cloup.option(
            "--rho", type=float, help="Exponent of the schedule.  [default: the schedule's]"
        ),
        cloup.option("--afs", is_flag=True, help="Analytic first step: one evaluation less."),
        cloup.option(
            "--denoise-to-zero", is_flag=True, help="End with an Euler step to sigma = 0."
        ),
        *more,
    )  # fmt: skip


def label_options(*more: Decorator, title: str = "Seeds and labels") -> Decorator:
    """Declare the options of class labels, after `more`."""
    return cloup.option_group(
        title,
        *more,
        cloup.option("--class", "class_idx", type=int, metavar="N", help="One class for all."),
        cloup.option(
            "--labels", metavar=RANDOM_OR_FILE, default="random",
            help="Class of each seed: drawn from the seed; seed modulo classes; or a file of lines "
            "'SEED CLASS'.",
        ),
        noise_option,
    )  # fmt: skip


def batch_option(default: int, text: str = "Samples per network call.") -> Decorator:
    """Declare --batch."""
    return cloup.option("--batch", type=click.IntRange(min=1), default=default, help=text)


def device_options(*more: Decorator) -> Decorator:
    """Declare the options of the device, the precision and `more`."""
    return cloup.option_group(
        "Device and precision", device_option, precision_option, *more, offline_option
    )


def feature_options(*more: Decorator) -> Decorator:
    """Declare the options of feature extraction and its cache."""
    return cloup.option_group(
        "Extraction and device",
        cloup.option(
            "--weights", multiple=True, metavar="NAME=FILE",
            help="Weights of an extractor, from a file or random:SEED.",
        ),
        cloup.option(
            "--allow-random-weights", "allow_random", is_flag=True,
            help="Accept random weights; the numbers then measure nothing.",
        ),
        cloup.option(
            "--skip-corrupt", is_flag=True, help="Leave out images that cannot be read."
        ),
        cloup.option(
            "--batch", type=int, default=64, help="Images per network call."
        ),
        cloup.option(
            "--cache", metavar="DIR", help="Folder of extracted features.  [default: in ERK_CACHE]"
        ),
        *more,
        device_option,
        offline_option,
    )  # fmt: skip


def subset_options(*more: Decorator, title: str = "Images") -> Decorator:
    """Declare --num and --seed, which choose images of a set, after `more`."""
    return cloup.option_group(
        title,
        *more,
        cloup.option(
            "--num", type=int, metavar="N", help="Use N of the images.  [default: all]"
        ),
        cloup.option(
            "--seed", type=click.IntRange(min=0), default=0,
            help="Seed that draws the N images, as EDM2 draws them.",
        ),
    )  # fmt: skip

"""Options that several commands share, in the groups of the help page.

Each option is declared once. Nothing here imports PyTorch, so that help pages appear at once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import cloup

from erk.method import fields
from erk.method.fields import Field, field

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])
PRECISIONS = click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"])
BATCH = click.IntRange(min=1, max=1 << 20)
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
    help="Precision of the networks; auto: fp16 on CUDA if the network's file says so, else fp32.",
)  # fmt: skip
noise_option = cloup.option(
    "--noise", type=click.Choice(["device", "cpu"]), default="device",
    help="Device that draws the noise: 'device' as published; 'cpu' gives a seed the same noise "
    "on every device.",
)  # fmt: skip
overwrite_option = cloup.option("--overwrite", is_flag=True, help="Replace existing files.")
dry_run_option = cloup.option("--dry-run", is_flag=True, help="Print the cost and stop.")


def setting(name: str, **changes: Any) -> Decorator:
    """Declare the option of one setting, as `erk.method.fields` declares it, with `changes`."""
    one = field(name)
    options: dict[str, Any] = {"help": one.help}
    if one.note:
        options["help"] += f"  [default: {one.note}]"
    if one.kind is bool:
        options["is_flag"] = True
    else:
        options |= {"default": None if one.multiple else one.default, "multiple": one.multiple}
        options |= {"metavar": one.metavar} if one.metavar else {}
        named = one.choices and not one.metavar
        options["type"] = click.Choice(one.choices) if named else one.kind
    return cloup.option(one.option, variable(one), **(options | changes))


def variable(one: Field) -> str:
    """Return the parameter of the option of a setting; "" for settings of Python alone."""
    return one.option.lstrip("-").replace("-", "_")


def check_needs(context: click.Context) -> list[str]:
    """Return the options on the command line.

    Raises ValueError for a number out of range, before PyTorch is imported, which takes seconds,
    and for a setting that has no effect without another one.
    """
    from erk.method.ranges import in_range  # help pages need no NumPy

    source = click.core.ParameterSource.COMMANDLINE
    given = {name for name in context.params if context.get_parameter_source(name) is source}
    spelling = {one.name: one.opts[0] for one in context.command.params}
    settings = [one for one in fields.fields() if variable(one) in given]
    for one in settings:
        if one.kind in (int, float):
            in_range(one, context.params[variable(one)])
    names = {one.name for one in settings} | given & {"card"}
    fields.check_needs(names, lambda one: spelling[variable(one)])
    return sorted(given)


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
        setting("guidance", default=None, help=field("guidance").help
                + "  [default: the preset's, else 1]"),
        setting("guidance_interval"),
        *more,
    )  # fmt: skip


def sampling_options(steps: int, *more: Decorator) -> Decorator:
    """Declare the options of the solver and its noise levels, before `more`."""
    return cloup.option_group(
        "Sampling",
        setting("solver"),
        setting("solver_options"),
        setting("schedule"),
        setting("steps", default=steps),
        *map(setting, ("sigma_min", "sigma_max", "rho", "afs", "denoise_to_zero")),
        *more,
    )  # fmt: skip


def label_options(*more: Decorator, title: str = "Seeds and labels") -> Decorator:
    """Declare the options of class labels, after `more`."""
    return cloup.option_group(
        title,
        *more,
        cloup.option(
            "--class", "class_idx", type=int, metavar="N", help="One class for all images."
        ),
        cloup.option(
            "--labels", metavar=RANDOM_OR_FILE, default="random",
            help="Class of each seed: drawn from the seed; seed modulo classes; or a file of lines "
            "'SEED CLASS'.",
        ),
        noise_option,
    )  # fmt: skip


def batch_option(default: int, text: str = "Samples per network call.") -> Decorator:
    """Declare --batch."""
    return cloup.option("--batch", type=BATCH, default=default, help=text)


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
            help="Weights of an extractor: a file, or random:SEED; may be repeated.",
        ),
        cloup.option(
            "--allow-random-weights", "allow_random", is_flag=True,
            help="Accept random weights; the numbers then measure nothing.",
        ),
        cloup.option(
            "--skip-corrupt", is_flag=True, help="Skip images that cannot be read."
        ),
        batch_option(64, "Images per network call."),
        cloup.option(
            "--cache", metavar="DIR", help="Folder of extracted features.  [default: in ERK_CACHE]"
        ),
        *more,
        device_option,
        offline_option,
    )  # fmt: skip


def refuse_existing(dest: Path, overwrite: bool, option: str = "--dest") -> None:
    """Raise ValueError if the file that an option names exists and is not to be replaced."""
    if dest.exists() and not overwrite:
        raise ValueError(f"{dest} exists: choose another {option}, or replace it with --overwrite")


def refuse_existing_network(path: Path, overwrite: bool, option: str) -> None:
    """Raise ValueError if a .safetensors file or its metadata exist and are not to be replaced."""
    for file in (path, path.with_suffix(".json")):
        refuse_existing(file, overwrite, option)


def weights_of(texts: Sequence[str]) -> dict[str, str]:
    """Return extractor -> weights from the texts of --weights. Raises ValueError."""
    weights: dict[str, str] = {}
    for text in texts:
        name, _, source = text.partition("=")
        if not name or not source:
            raise ValueError(f"--weights wants NAME=FILE, such as inception=random:0, not '{text}'")
        if name in weights:
            raise ValueError(f"--weights gives {name} twice: leave out one of them")
        weights[name] = source
    return weights


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
            help="Seed that draws the N images, in the way of EDM2.",
        ),
    )  # fmt: skip

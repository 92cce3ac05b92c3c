"""The command `erk`: each subcommand lives in a module of its own and is imported when it runs."""

from importlib import import_module

import click

from erk import __version__
from erk.commands.cli import CONTEXT

SUBCOMMANDS = {
    "generate": "Sample images from a diffusion model, with or without ERK-Guid.",
    "evaluate": "Measure images against a reference.",
    "calibrate": "Fit a solver's correction to a network.",
    "tune": "Choose w_stiff and w_con by the solver's held-out error.",
    "convert": "Convert a released network to safetensors.",
    "merge": "Merge shards: images, features or references.",
    "ema": "Average a training run's snapshots to any EMA length.",
    "make-reference": "Compute the statistics of real images.",
    "prepare-imagenet": "Crop and pack ImageNet's images.",
    "compare": "Show two runs of the same seeds side by side.",
    "trace": "Plot stiffness and corrections along sigma.",
    "nearest": "Show the training images nearest to generated ones.",
    "presets": "List the presets.",
    "doctor": "Check this installation.",
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when that subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all subcommands, in the order of the help page."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a subcommand; None if there is none of that name."""
        name = cmd_name.replace("_", "-")
        if name not in SUBCOMMANDS:
            return None
        module = import_module(f"erk.commands.{name.replace('-', '_')}")
        command: click.Command = module.main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Sample diffusion models with ERK-Guid and measure the result."""

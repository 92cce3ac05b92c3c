"""The command `erk`; the module of a subcommand is imported when that subcommand runs."""

from importlib import import_module

import click

from erk import __version__
from erk.commands.cli import CONTEXT, Arguments, suggestion
from erk.commands.reports import is_first

SECTIONS = {
    "Sample": {
        "generate": "Sample images from a diffusion model, with or without ERK-Guid.",
        "merge": "Merge shards: images, features or references.",
        "presets": "List the presets.",
    },
    "Measure": {
        "evaluate": "Measure images against a reference.",
        "make-reference": "Compute the statistics of real images.",
        "prepare-imagenet": "Crop ImageNet's images and pack them into an archive.",
    },
    "ERK-Guid without hand-chosen weights": {
        "calibrate": "Search for the best sampler for a network and a number of evaluations.",
        "tune": "Search for w_stiff and w_con alone.",
    },
    "Networks": {
        "convert": "Convert a released network to safetensors.",
        "ema": "Average a training run's snapshots to any EMA length.",
    },
    "Inspect": {
        "compare": "Show two runs of the same seeds side by side.",
        "nearest": "Show the training images nearest to generated ones.",
        "trace": "Plot stiffness and corrections along sigma.",
        "doctor": "Check this installation.",
    },
}
SUBCOMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}


class LazyGroup(Arguments, click.Group):
    """A group whose help page imports no subcommand."""

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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; an unknown name is refused with the most similar one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            message = f"No such command {args[0]!r}. {suggestion(args[0], SUBCOMMANDS)}".strip()
            if not is_first(message):
                raise click.exceptions.Exit(2) from error
            raise click.UsageError(message, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of subcommands from the table above."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()), col_max=max(map(len, SUBCOMMANDS)))


@click.group(
    name="erk",
    cls=LazyGroup,
    context_settings=CONTEXT,
    epilog="\b\nExamples:\n  erk generate --preset digits --seeds 0-99 --steps 8 --w-stiff 0.5\n"
    "  erk evaluate --images out --ref digits",
)
@click.version_option(__version__)
def main() -> None:
    """Sample diffusion models with ERK-Guid and measure the images.

    `erk COMMAND --help` shows the options and examples of a command.
    """

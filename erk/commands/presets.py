"""The command `erk presets`: list every preset with its networks and published metric."""

import click

from erk.commands.cli import CONTEXT, clean_exit


@click.command(context_settings=CONTEXT)
@clean_exit
def main() -> None:
    """Print every preset: network, guiding network and weight, published metric."""
    from erk.models.presets import describe

    click.echo("\n".join(describe()))

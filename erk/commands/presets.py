"""The command `presets`: list every preset with its networks and published metric."""

import click

from erk.commands.cli import command


@command("erk presets", "erk presets | grep edm2-img512")
def main() -> None:
    """Print every preset: network, guide and guidance weight, published metric."""
    from erk.models.presets import describe

    click.echo("\n".join(describe()))


if __name__ == "__main__":
    main()

"""The studies of ERK-Guid without hand-chosen weights: `python -m scripts.studies NAME`."""

from importlib import import_module

import click

from erk.commands.cli import CONTEXT

STUDIES = {
    "accuracy": "which digits the MNIST networks draw as asked; results/accuracy.md",
    "auto": "erk='auto' with every solver; results/auto.md",
    "calibration": "calibrated corrections of every solver; results/calibration.md",
    "cards": "cards of erk calibrate at 5 to 15 evaluations; results/cards.md",
    "comparison": "solvers with and without ERK-Guid at equal cost; results/comparison.md",
    "guidance": "weights of model guidance for the embedded networks; results/guidance.md",
    "levels": "noise levels of GITS and of Xue et al. beside ours; results/levels.md",
    "quality": "solver error against FD over w_stiff; results/quality.md",
    "rules": "ERK-Guid with CFG, APG and CFG++; results/rules.md",
    "variants": "variants of the calibration; the last tables of docs/beyond.md",
    "local-errors": "which weights remove a local error; the first table of docs/theory.md",
    "signs": "which sign of h lowers the global error; the second table of docs/theory.md",
    "records": "the tables of results/*.md again from their rows, with no sampling",
}


class Studies(click.Group):
    """A group that imports a study when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the studies."""
        return [*STUDIES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a study; None if there is none of that name."""
        if cmd_name not in STUDIES:
            return None
        pair = {"local-errors": "local_errors", "signs": "signs"}
        module = import_module(f"scripts.studies.{'pairs' if cmd_name in pair else cmd_name}")
        command: click.Command = getattr(module, pair.get(cmd_name, "main"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the studies without importing them."""
        with formatter.section("Studies"):
            formatter.write_dl(list(STUDIES.items()))


@click.group(cls=Studies, context_settings=CONTEXT)
def main() -> None:
    """Run a study; rows that are kept in results/rows are not computed again."""


if __name__ == "__main__":
    main()

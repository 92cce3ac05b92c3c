"""The tables of the studies, written again from their rows with no sampling.

python -m scripts.studies records                 # results/*.md of the names below
"""

import json
from importlib import import_module
from pathlib import Path

import click

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import write_file
from scripts.studies.rows import RESULTS

NAMES = ("accuracy", "auto", "calibration", "cards", "guidance", "levels", "rules")
"""Studies whose rows are in NAME.json."""


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
                default=RESULTS)  # fmt: skip
@clean_exit
def main(folder: Path) -> None:
    """Write the tables in FOLDER again (default: results) from their rows."""
    for name in NAMES:
        if (folder / f"{name}.json").is_file():
            write_file(folder / f"{name}.md", text_of(folder, name).encode())
            click.echo(f"wrote {folder / name}.md")


def text_of(folder: Path, name: str) -> str:
    """Return the text of a study's rows in this version's words."""
    rows = json.loads((folder / f"{name}.json").read_bytes())["rows"]
    text: str = import_module(f"scripts.studies.{name}").text(rows)
    return text


if __name__ == "__main__":
    main()

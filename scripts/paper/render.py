"""Write all pages of results again, with no sampling: python -m scripts.paper.render

Each page is written from the rows in its .json file, in the words and the layout of this version.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import click

from erk.commands.cli import CONTEXT, clean_exit
from scripts.paper.config import ROOT, Measured, Request, Scale, config_names, load_config
from scripts.paper.index import VARIANTS, write_index
from scripts.paper.page import WRITERS, Page, read_page, write_page
from scripts.paper.tables import tables_of


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
                default=ROOT / "results")  # fmt: skip
@clean_exit
def main(folder: Path) -> None:
    """Write the pages in FOLDER again (default: results) from their rows, and the index."""
    for page in rendered(folder):
        for path in write_page(folder, page, ends=ends_of(folder, page)):
            click.echo(f"wrote {path}")
    click.echo(f"wrote {write_index(folder)}")


def ends_of(folder: Path, page: Page) -> list[str]:
    """Return the endings of the files of a page that are in a folder."""
    return [end for end in WRITERS if (folder / f"{page.name}.{end}").is_file()]


def rendered(folder: Path) -> Iterator[Page]:
    """Yield the pages of a folder as this version lays them out. Raises ValueError."""
    configs = {name + variant: name for name in config_names() for variant in VARIANTS}
    for path in sorted(folder.glob("*.json")):
        if "tables" in json.loads(path.read_bytes()):  # else the rows of a study
            page = read_page(path)
            yield _rendered(page, configs[path.stem]) if path.stem in configs else page


def _rendered(page: Page, name: str) -> Page:
    """Lay out the tables of sampled rows again."""
    config = load_config(name)
    if not isinstance(config, Measured):
        return page
    names = [row.name for row in config.rows]
    if [row["name"] for row in page.rows] != names:
        raise ValueError(f"the rows of {page.name} are not those of configs/{name}.yaml: "
                         f"reproduce {name} again")  # fmt: skip
    scale: Scale = "paper" if page.scale == "paper" else "embedded"
    request = Request(scale=scale, as_printed="as-printed" in page.name)
    return page.model_copy(update={"tables": tables_of(config, request, page.rows)})


if __name__ == "__main__":
    main()

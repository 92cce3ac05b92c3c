"""Write all pages of results again, with no sampling: python -m scripts.paper.render

Each page is written from the rows in its .json file, in the words and the layout of this version;
Figures 4 and 6 are drawn again.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

from erk.commands.cli import CONTEXT, clean_exit
from scripts.paper.config import ROOT, AnyConfig, Request, Sampled, Sweep, config_names, load_config
from scripts.paper.figures import drawn, page_of_sweep
from scripts.paper.index import variants, write_index
from scripts.paper.page import WRITERS, Page, read_page, write_page
from scripts.paper.scales import at_scale
from scripts.paper.tables import page_of


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
                default=ROOT / "results")  # fmt: skip
@clean_exit
def main(folder: Path) -> None:
    """Write the pages in FOLDER again (default: results) from their rows, and the index."""
    for page in rendered(folder):
        for path in write_page(folder, page, images_of(page), ends_of(folder, page)):
            click.echo(f"wrote {path}")
    click.echo(f"wrote {write_index(folder)}")


def ends_of(folder: Path, page: Page) -> list[str]:
    """Return the endings of the files of a page that are in a folder."""
    return [end for end in WRITERS if (folder / f"{page.name}.{end}").is_file()]


def images_of(page: Page) -> dict[str, bytes]:
    """Draw the image of a sweep from its rows; other images need more than a page has."""
    if page.kind != "sweep" or not page.finished:
        return {}
    config = at_scale(*known()[page.name])
    assert isinstance(config, Sweep)
    return drawn(config, page)


@cache
def known() -> dict[str, tuple[AnyConfig, Request]]:
    """Return the name of every page of an experiment, with its config and what was asked for."""
    configs = map(load_config, config_names())
    return {config.name + suffix: (config, request) for config in configs
            for suffix, request in variants().items()}  # fmt: skip


def rendered(folder: Path) -> Iterator[Page]:
    """Yield the pages of a folder as this version lays them out. Raises ValueError."""
    for path in sorted(folder.glob("*.json")):
        if "tables" not in json.loads(path.read_bytes()):  # the rows of a study
            continue
        page = read_page(path)
        if page.finished and page.name in known():
            config, request = known()[page.name]
            page = _rendered(page, at_scale(config, request), request)
        yield page


def _rendered(page: Page, config: Any, request: Request) -> Page:
    """Return the page of a table or a sweep, from its finished rows."""
    unknown = page.finished.keys() - {row.name for row in config.rows}
    if unknown:
        raise ValueError(f"the row '{min(unknown)}' of {page.name} is not in configs/{config.name}"
                         f".yaml: reproduce {config.name} again")  # fmt: skip
    finished = [page.finished.get(row.name, {}) for row in config.rows]
    layout = page_of if isinstance(config, Sampled) else page_of_sweep
    return layout(config, request, finished)


if __name__ == "__main__":
    main()

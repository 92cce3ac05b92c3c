"""The page of a figure: its tables and notes beside a PNG image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metrics.table import write
from scripts.paper.config import Config, Request, page_name
from scripts.paper.render import Block, Page, heading, write_page


class FigureContent(NamedTuple):
    """Tables, full-precision numbers, notes and the image of one figure."""

    blocks: Sequence[Block]
    data: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    image: bytes  # a PNG file


def write_figure(
    config: Config,
    request: Request,
    dataset: str,
    content: FigureContent,
    provenance: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Write a figure's page and PNG file into ``request.results``; return the paths written.

    ``dataset`` names what stands for the paper's data at this scale, for the title.
    """
    name = page_name(config, request)
    notes = [*content.notes, f"The paper: {config.paper}", *config.notes]
    page = Page(
        name, heading(config, request.scale, dataset), config.kind, request.scale, content.blocks,
        content.data, notes, provenance, [f"{name}.png"],
    )  # fmt: skip
    image = write(request.results / f"{name}.png", content.image)
    return [*write_page(request.results, page), image]

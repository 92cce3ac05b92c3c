"""Table 1 and Figures 1 and 2: the two-dimensional toy, by the code of scripts/toy.py.

Nothing is sampled from a network's distribution here and both scales are the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from erk.analysis import toy, toy_results
from erk.runtime.provenance import provenance
from metrics.table import write
from scripts.paper import toy as parts
from scripts.paper.config import Config, Request, page_name
from scripts.paper.render import Block, Page, heading, write_page

SAMPLES, SEED = 4096, 0
FEWEST = 8  # trajectories that make quartiles
DOTS = 4  # dots of Figure 1 per trajectory of Figure 2, as scripts/toy.py has it


class Kept(NamedTuple):
    """What a part of scripts/toy.py hands over."""

    rows: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, bytes]  # by what follows the page's name in theirs
    more: Mapping[str, Any]


def run(config: Config, request: Request) -> list[Path]:
    """Compute one of the three and write it; the files written. ``num``: trajectories."""
    samples = SAMPLES if request.num is None else request.num
    if samples < FEWEST:
        raise ValueError(f"{config.name} needs --num {FEWEST} or more, not {samples}")
    if request.dry_run:
        click.echo(f"{config.name}: the exact toy in float64; no network is sampled"
                   + (f"; {samples} trajectories" if config.name == "figure2" else ""))  # fmt: skip
        return []
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    kept = compute(config.name, samples)
    files = {f"{page_name(config, request)}{end}.png": png for end, png in kept.pictures.items()}
    notes = [parts.CAPTIONS[config.name], f"The paper: {config.paper}", *config.notes]
    page = Page(
        page_name(config, request), heading(config, None), config.kind, None,
        BLOCKS[config.name](kept), kept.rows, notes, [provenance()], list(files),
    )  # fmt: skip
    pictures = [write(request.results / name, png) for name, png in files.items()]
    return [*write_page(request.results, page), *pictures]


def compute(name: str, samples: int) -> Kept:
    """The numbers of one part, and its pictures; Figure 2 has those of `helps`, too."""
    found: list[Kept] = []

    def keep(_: str, rows: Any, picture: bytes | None = None, **more: Any) -> None:
        found.append(Kept(rows, {} if picture is None else {"": picture}, more))

    mixture = toy.tree("A")
    if name == "table1":
        parts.table1(keep, mixture)
    elif name == "figure1":
        parts.figure1(keep, mixture, DOTS * samples, SEED)
    else:
        exact = parts.exact_run(mixture, samples, SEED, toy_results.SUBSTEPS)
        parts.figure2(keep, exact)
        parts.helps(keep, mixture, exact)
        figure2, helps = found
        pictures = {**figure2.pictures, "-helps": helps.pictures[""]}
        return Kept(figure2.rows, pictures, {**figure2.more, "helps": helps.rows})
    return found[0]


def _table1(kept: Kept) -> list[Block]:
    return [Block("Norms along the two eigenvectors.", list(kept.rows[0]), kept.rows)]


def _figure1(kept: Kept) -> list[Block]:
    shares = kept.more["stiffness"]
    told = f"Quantiles of the stiffness of {kept.more['dots']} samples; the lines are in the csv."
    return [Block(told, list(shares), [shares])]


def _figure2(kept: Kept) -> list[Block]:
    errors, helps = kept.more["guided_errors"], kept.more["helps"]
    return [
        Block(f"Medians over {kept.more['states']} states, by quartile of stiffness.",
              list(kept.rows[0]), kept.rows),
        Block("Mean |LTE| of one guided step relative to Heun's.", list(errors[0]), errors),
        Block("Whole trajectories: distance to the exact end points ± standard error.",
              list(helps[0]), helps),
    ]  # fmt: skip


BLOCKS = {"table1": _table1, "figure1": _figure1, "figure2": _figure2}

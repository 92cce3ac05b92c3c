"""Figure 5: text to image with PixArt-alpha, its DPM-Solver with and without ERK-Guid.

It says what would run and what is missing for it; nothing else is drawn in its place.
"""

from importlib.util import find_spec
from pathlib import Path

import click
from huggingface_hub import try_to_load_from_cache

from scripts.tables.config import Config, Request, page_name
from scripts.tables.render import Page, heading, write_page

INTEGRATION = "diffusers"  # erk/integrations/diffusers.py: ERK-Guid in that package's schedulers
INDEX = "model_index.json"  # what a pipeline of that package is loaded by


def run(config: Config, request: Request) -> list[Path]:
    """Print the plan with ``dry_run``; at embedded scale, where no network takes prompts, a page
    that says so; else ValueError with the plan and what is missing."""
    lacking = [f"missing: {one}" for one in missing(config)]
    told = "\n".join([plan(config), *lacking])
    if request.dry_run:
        click.echo(told)
        return []
    if request.scale == "paper":
        raise ValueError(f"{config.name} cannot be made with this version.\n{told}")
    notes = ["NOT MADE: no network of this repository takes prompts. At paper scale it needs:",
             *lacking, plan(config), f"The paper: {config.paper}", *config.notes]  # fmt: skip
    title = heading(config, request.scale)
    page = Page(page_name(config, request), title, config.kind, request.scale, [], [], notes)
    return write_page(request.results, page)


def plan(config: Config) -> str:
    """What the figure shows once everything is there."""
    options = config.options
    return "\n".join([
        f"{config.name}: {options['repo']}, {options['steps']} steps, guidance "
        f"{options['guidance']:g}, one picture per prompt, seed {config.seeds['paper']}",
        *(f"  row: {row.name}" for row in config.rows),
        *(f"  prompt: {prompt}" for prompt in options["prompts"]),
    ])  # fmt: skip


def missing(config: Config) -> list[str]:
    """What must be there first, each with what to do; weights are only looked for in the cache."""
    repo, found = config.options["repo"], []
    if (
        find_spec("erk.integrations") is None
        or find_spec(f"erk.integrations.{INTEGRATION}") is None
    ):
        found.append(f"erk.integrations.{INTEGRATION}, ERK-Guid in the schedulers of diffusers, "
                     "which this version does not have")  # fmt: skip
    if not isinstance(try_to_load_from_cache(repo, INDEX), str):
        found.append(f"the weights https://huggingface.co/{repo} (size unknown); fetch them by: "
                     f"hf download {repo}")  # fmt: skip
    return found

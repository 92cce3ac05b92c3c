"""Pages of the site that are made from files outside of docs/; called by mkdocs (mkdocs.yml)."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
PICTURES = {"demo.png": "results/demo.png", "results.html": "results/index.html"}
COMMANDS = {
    "erk-generate": "generate", "erk-evaluate": "evaluate", "erk-tune": "erk.study.tune_command",
}  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names in the navigation only what there is."""
    made = {*PAGES, *PICTURES, "tour.md", "reference/commands.md"}
    docs = Path(config.docs_dir)
    for section in config.nav or []:
        for title, pages in section.items():
            if isinstance(pages, list):
                section[title] = [
                    one for one in pages
                    if {*one.values()} <= made or (docs / next(iter(one.values()))).is_file()
                ]  # fmt: skip
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures."""
    sys.path.insert(0, str(ROOT))
    for name, source in {**PAGES, **PICTURES}.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for name, content in [*_notebook(ROOT / "docs" / "tour.ipynb"), _commands()]:
        files.append(File.generated(config, name, content=content))
    return files


def _notebook(path: Path) -> Iterator[tuple[str, Any]]:
    """The notebook as a page, and its pictures."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(path), {"unique_key": "tour"})
    yield "tour.md", text
    yield from resources["outputs"].items()


def _commands() -> tuple[str, str]:
    """What --help says, as a page."""
    parts = ["# Commands\n"]
    for name, module in COMMANDS.items():
        if find_spec(module) is None:
            continue
        command = import_module(module).main
        with click.Context(command, info_name=name, max_content_width=90) as context:
            parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "reference/commands.md", "\n".join(parts)

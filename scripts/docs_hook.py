"""Pages of the site that are made from files outside of docs/; called by mkdocs (mkdocs.yml)."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md", "results/demo.png": "demo.png",
    "results/index.html": "results.html",
}  # fmt: skip
"""Files of the repository that are pages of the site, under another name."""
COMMANDS = {
    "erk-generate": "generate", "erk-evaluate": "evaluate", "erk-tune": "erk.study.tune_command",
}  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names in the navigation only what there is."""
    docs = Path(config.docs_dir)
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    there |= {name for source, name in OUTSIDE.items() if (ROOT / source).is_file()}
    there |= {"tour.md", "reference/commands.md"}
    for section in config.nav or []:
        for title, pages in section.items():
            if isinstance(pages, list):
                section[title] = [page for page in pages if there.issuperset(page.values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures."""
    sys.path.insert(0, str(ROOT))
    for source, name in OUTSIDE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for name, content in [*_notebook(ROOT / "docs" / "tour.ipynb"), _commands()]:
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to files outside of docs/ lead to their pages."""
    up = "../" * page.file.src_uri.count("/")
    for source, name in {**OUTSIDE, "README.md": "index.md"}.items():
        markdown = re.sub(rf"\]\((\.\./)*{re.escape(source)}(?=[)#])", f"]({up}{name}", markdown)
    return markdown


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

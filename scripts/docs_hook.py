"""Pages of the site that are made from files outside of docs/; called by mkdocs (mkdocs.yml)."""

import re
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
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")
COMMANDS = {
    "erk generate": "erk.commands.generate", "erk evaluate": "erk.commands.evaluate",
    "erk calibrate": "erk.commands.calibrate", "erk tune": "erk.commands.tune",
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
    for source, name in OUTSIDE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for name, content in [*_notebook(ROOT / "docs" / "tour.ipynb"), _commands()]:
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between files of the repository lead to their pages; to other files there are none."""
    if page.file.abs_src_path is None:
        return markdown
    here, up = Path(page.file.abs_src_path).parent, "../" * page.file.src_uri.count("/")

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link.groups("")
        place = (here / target).resolve()
        if not (place.is_relative_to(ROOT) and place.exists()):
            return link[0]
        name = place.relative_to(ROOT).as_posix()
        name = {"README.md": "docs/index.md"}.get(name, OUTSIDE.get(name, name))
        if name not in OUTSIDE.values() and not name.startswith("docs/"):
            return text
        return f"[{text}]({up}{name.removeprefix('docs/')}{anchor})"

    return LINK.sub(lead, markdown)


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

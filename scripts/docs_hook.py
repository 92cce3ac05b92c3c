"""Pages of the site that come from files outside of docs/, and its formulas (see mkdocs.yml)."""

import html
import re
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from erk.commands.main import main as erk
from erk.method.fields import PYTHON, Field, fields

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md", "results/demo.png": "demo.png",
    "results/index.html": "results.html", "results/quality.png": "quality.png",
}  # fmt: skip
"""Paths in the repository and in the site."""
COMMANDS = """# Commands

One command, `erk`, has a subcommand for every task. `python -m erk` and, in several processes,
`torchrun -m erk` run the same; `generate.py` and `evaluate.py` in the root of the repository are
`erk generate` and `erk evaluate`. Options may be spelt with underscores, `--w_stiff`.
"""
SETTINGS = """# Settings

Every setting of `erk.sample`, `erk.trajectory` and `erk.Settings`, with its option of `erk
generate`, its default, and its symbol in the paper or in EDM. This page is generated from
`erk.method.fields.fields()`, as are the options, the rows of `configs/` and a run's identity.
"""
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")


FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</(?:span|div)>', re.S
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside of docs/."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "reference/settings.md", content=settings()))
    return files


def settings() -> str:
    """Return the page of settings: one table for each group of `fields()`."""
    parts = [SETTINGS]
    groups = dict.fromkeys(field.group for field in fields())
    for group in sorted(groups, key=lambda group: group == PYTHON):  # stable: that one last
        rows = "\n".join(_row(field) for field in fields() if field.group == group)
        parts.append(f"## {group}\n\n| setting | option | default | symbol | meaning |\n"
                     f"| --- | --- | --- | --- | --- |\n{rows}\n")  # fmt: skip
    return "\n".join(parts)


def _row(field: Field) -> str:
    """Return the row of one setting; file names of docs/ become links."""
    name, option = f"`{field.name}`", f"`{field.option}`" if field.option else "–"
    default = field.note or f"`{field.default!r}`"
    unit = f" Unit: {field.unit}." if field.unit not in field.help.lower() else ""
    choices = f" One of {', '.join(f'`{choice}`' for choice in field.choices)}." * bool(
        field.choices and field.name != "solver"
    )
    meaning = re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", field.help) + choices + unit
    if field.default is True and field.option:
        meaning = f"The option sets False: {meaning[0].lower()}{meaning[1:]}"
    cells = [name, option, default, f"`{field.symbol}`" if field.symbol else "", meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def commands() -> str:
    """Return the page of commands: the help of `erk` and of every subcommand."""
    parts = [COMMANDS, _section(erk, "erk", None)]
    with click.Context(erk, info_name="erk") as parent:
        for name in erk.list_commands(parent):
            command = erk.get_command(parent, name)
            assert command is not None
            parts.append(_section(command, name, parent))
    return "\n".join(parts)


def _section(command: click.Command, name: str, parent: click.Context | None) -> str:
    """Return a heading and the help of one command."""
    with command.context_class(
        command, info_name=name, parent=parent, max_content_width=90, **command.context_settings
    ) as context:
        return f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links between files of the repository to their pages; unlink other files."""
    if page.file.abs_src_path is None:
        return markdown
    here, up = Path(page.file.abs_src_path).parent, "../" * page.file.src_uri.count("/")

    def replace(link: re.Match[str]) -> str:
        text, target, anchor = link.groups("")
        path = (here / target).resolve()
        if not (path.is_relative_to(ROOT) and path.exists()):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        name = "docs/index.md" if name == "README.md" else OUTSIDE.get(name, name)
        if name not in OUTSIDE.values() and not name.startswith("docs/"):
            return text
        return f"[{text}]({up}{name.removeprefix('docs/')}{anchor})"

    return LINK.sub(replace, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write the LaTeX of formulas as MathML, which browsers show without a script."""

    def formula(match: re.Match[str]) -> str:
        display = "inline" if match[2] == "(" else "block"
        return convert(html.unescape(match[3]).strip(), display=display)

    return FORMULA.sub(formula, content)

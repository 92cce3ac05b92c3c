"""Pages of the site that come from files outside of docs/, and its formulas (see mkdocs.yml).

Formulas become MathML, not KaTeX: a browser shows it without a script and without fetched fonts.
The commands are not mkdocs-click's: that has no groups of options, no examples and no links.
"""

import html
import inspect
import re
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from erk.commands.cli import Command
from erk.commands.main import SECTIONS
from erk.commands.main import main as erk
from erk.method.fields import PYTHON, Field, fields
from scripts.typeset import UNBROKEN, typeset

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md", "results/index.html": "results.html",
    "checkpoints/README.md": "models.md",
    "erk/integrations/comfyui/workflow.json": "comfyui-workflow.json",
    **{f"results/{path.name}": f"results/{path.name}" for path in (ROOT / "results").iterdir()
       if path.suffix in (".png", ".md")},
}  # fmt: skip
"""Paths in the repository and in the site; of results/ only what a page names is copied."""
HEADER = """<header style="display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .3rem .2rem">
<a href="index.html"><strong>ERK-Guid</strong></a><a href="tutorial.html">Tutorial</a>
<a href="howto/tables.html">Reproduce the tables</a><a href="paper.html">The paper</a>
<a href="glossary.html">Glossary</a></header>
"""
"""What results/index.html has in the site alone: the way back."""
COMMANDS = """# Commands

One command, `erk`, has a subcommand for every task. `python -m erk` and, in several processes,
`torchrun -m erk` run the same; `generate.py` and `evaluate.py` in the root of the repository are
`erk generate` and `erk evaluate`. Options may be spelt with underscores, `--w_stiff`.
Every command also has `--help` and `--version`.
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
PRIME = re.compile(r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0203[23];)</mi></msup>")
LONG = re.compile("(?<!<pre>)(?<!</span>)<code>([^<]{29,})</code>")
"""Code that does not fit into a line of a phone (see site.css)."""
PARTS = re.compile(r"(?s)<(pre|code|math|svg|script|style|h\d)\b.*?</\1>|<[^>]*>|[^<]+")
"""Elements whose text stays as it is, tags, and text."""
WORD = re.compile(r"(?<!\S)(?=\S*\w[-+(])[^\s&]{3,14}(?!\S)")
GLUE = re.compile(r"(?<=\d) (?=%|x \d|\d{3}\b|steps\b)|(?<=\d x) (?=\d)|(?<= [=<>]) (?=-?\d)")
"""Blanks at which no line ends: 50 000, 8 x 8, 2 %, 32 steps, = 0."""
SHAPE = re.compile(r"\[[A-Z]\w*(?:, [^][,]{1,9}){1,4}\]|\[(?:[A-Z]|steps) \+ 1\]")
"""[B, C, H, W] or [N + 1], which is not divided; nor is a range of numbers."""
RANGE = re.compile(r"(?<![\w.-])\d+-\d+(?![\w-]|\.\d)")
CELL = re.compile(r"""(?s)<td((?: style="[^"]*")?)>(.*?)</td>""")
NUMBERED = re.compile(r"\b(Table|Figure|Figs?\.|Eq\.|NFE|seed|w_con|w_stiff|tau) (?=\d)")
BESIDE = re.compile(r"(?s)([(]?)(<math\b(?:(?!</math>).)*</math>)([.,;:)]*)")
ALONE = re.compile("(?<=<mrow><mo)>(?=[^<]*</mo></mrow></math>)")
PRIVATE = re.compile(
    r"""_setting((?:</?\w[^>]*>)+)\((</span>\s*)<span class="s2">"(\w+)"</span>\s*"""
    r"""<span class="p">\)"""
)
"""A default in the signature of `erk.Settings`."""
DIVIDED = re.compile(r"""\n +(?=<span class="o">\|</span>)""")
"""The end of a line within `str | None` in a signature."""
DOCUMENT = re.compile(r"docs/([\w/-]+)\.md")
SHORT = re.compile(r"(?<=<code>)[^<]{,28}(?=</code>)")
BAR = re.compile(r"<mo[^>]*>(&#x0007C;)</mo>")
SIGN = re.compile(  # + or - after one of = ( [ , / < > and the like
    "(<mo[^>]*>&#x(?:0003D|00028|0005B|0002C|0002F|0003C|0003E|02248|02190);</mo>)"
    "<mo>(&#x(?:02212|0002B);)</mo>"
)
SLASH = re.compile("<mo>(&#x0002F;|&#x02202;|/)</mo>")
SUBCOMMAND = rf"\berk (?:{'|'.join(name for names in SECTIONS.values() for name in names)})\b"
LN = re.compile("(<mi>ln</mi>|<mo>ln</mo>)(?=<m)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside of docs/."""
    pages = "".join(path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md"))
    records = [path for path in (ROOT / "results").glob("*.md") if f"results/{path.name}" in pages]
    pages += "".join(  # and what the records name
        path.read_text("utf-8").replace("](", "](results/") for path in records
    )
    for source, target in OUTSIDE.items():
        if source == "results/index.html":
            text = (ROOT / source).read_text("utf-8")
            text = text.replace('<div class="columns">', f'{HEADER}<div class="columns">', 1)
            text = text.replace('href="comparison.html"', 'href="results/comparison.html"', 1)
            text = _linked(text, "")
            files.append(File.generated(config, target, content=text))
        elif source in pages or not source.startswith("results/"):
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
        parts.append(f"## {group}\n\n| setting | meaning | default | option | symbol |\n"
                     f"| --- | --- | --- | --- | --- |\n{rows}\n")  # fmt: skip
    return "\n".join(parts)


def _titled(text: str) -> str:
    """Turn the names of files of docs/ into links that show their titles."""

    return DOCUMENT.sub(lambda name: f"[{_title(name[0])}](../{name[1]}.md)", text)


def _linked(text: str, up: str) -> str:
    """Do the same in HTML, for a page that is below the root by as many levels as `up` has."""

    def link(name: re.Match[str]) -> str:
        return f'<a href="{up}{name[1]}.html">{html.escape(_title(name[0]), quote=False)}</a>'

    return DOCUMENT.sub(link, text)


def _title(path: str) -> str:
    """Return the title of a file of docs/."""
    return (ROOT / path).read_text("utf-8").partition("\n")[0].removeprefix("# ")


def _row(field: Field) -> str:
    """Return the row of one setting."""
    name, option = f"`{field.name}`", f"`{field.option}`" if field.option else "–"
    default = field.note or f"`{field.default!r}`"
    unit = f" Unit: {field.unit}." if field.unit not in field.help.lower() else ""
    choices = f" One of {', '.join(f'`{choice}`' for choice in field.choices)}." * bool(
        field.choices and field.name != "solver"
    )
    meaning = _titled(field.help) + choices + unit
    if field.default is True and field.option:
        meaning = f"The option sets False: {meaning[0].lower()}{meaning[1:]}"
    cells = [name, meaning, default, option, f"`{field.symbol}`" if field.symbol else "–"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def commands() -> str:
    """Return the page of commands: every command of the tree with its options and defaults."""
    parts = [COMMANDS]
    with click.Context(erk, info_name="erk") as parent:
        for title, names in SECTIONS.items():
            parts += [f"## {title}", *(_command(name, parent) for name in names)]
    return "\n\n".join(parts)


def _command(name: str, parent: click.Context) -> str:
    """Return a heading, the usage, the options by group, and the examples of one command."""
    command = erk.get_command(parent, name)
    assert isinstance(command, Command)
    with command.context_class(
        command, info_name=name, parent=parent, **command.context_settings
    ) as context:
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        groups = [*command.option_groups, command.get_default_option_group(context)]
        options = [
            f"**{group.title}**\n\n{lines}"
            for group in groups
            if (
                lines := "\n\n".join(filter(None, (_option(one, context) for one in group.options)))
            )
        ]
    paragraphs = [_paragraph(text) for text in inspect.cleandoc(command.help or "").split("\n\n")]
    examples = inspect.cleandoc((command.epilog or "").replace("\b\nExamples:", ""))
    return "\n\n".join([
        f"### {context.command_path}", *paragraphs, f"```text\n{usage}\n```", *options,
        f"```bash\n{examples}\n```",
    ])  # fmt: skip


def _paragraph(text: str) -> str:
    """Return a paragraph of a help page; click leaves the lines of one after \\b as they are."""
    kept = text.removeprefix("\b\n")
    return f"```text\n{kept}\n```" if kept != text else _escaped(text)


def _option(option: click.Parameter, context: click.Context) -> str:
    """Return the entry of one option; "" for those that every command has."""
    record = option.get_help_record(context)
    if record is None or option.name in ("version", "_click_default_help"):
        return ""
    text, _, facts = record[1].partition("  [")
    facts = re.sub(r"\]\s+\[", "; ", facts.removesuffix("]"))
    facts = re.sub(r"\((.*)\)$", r"\1", facts)  # click's own parentheses
    facts = re.sub(r"(\S+)<=x<=1000000000\.0|x>=(\S+)", r"at least \1\2", facts)
    facts = re.sub(r"(\S+)<=x<=(\S+)", r"from \1 to \2", facts)
    facts = facts[:1].upper() + facts[1:]
    lines = " ".join([_titled(_escaped(text)), *([f"*{_escaped(facts)}.*"] if facts else [])])
    return f"`{record[0].removesuffix(' RANGE')}`\n:   {lines}"


def _escaped(text: str) -> str:
    """Return plain text for Markdown, with its options as code."""
    parts = re.split(
        rf"(`[^`]*`|torchrun --.*?\.\.\.|{SUBCOMMAND}|(?<![\w-])--[A-Za-z][\w-]*)", text
    )
    for n, part in enumerate(parts):
        if n % 2:
            parts[n] = f"`{part.strip('`')}`"
        else:
            parts[n] = re.sub(r"([\\*_\[\]])", r"\\\1", html.escape(part, quote=False))
    return "".join(parts)


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

    if page.file.src_uri in OUTSIDE and page.file.src_uri.startswith("results/"):
        markdown = _with_origin(markdown, page.file.src_uri)
    return LINK.sub(replace, markdown)


def _with_origin(markdown: str, record: str) -> str:
    """Return a record with a sentence below its heading, which some do not have.

    The sentence names the pages of docs/ that link to the record.
    """
    pages = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if f"/{record})" in path.read_text("utf-8")
    ]
    explained = f" It is explained in {_titled(' and '.join(pages))}." if pages else ""
    origin = f"\nA record as its command wrote it.{explained}\n\n"
    if not markdown.startswith("# "):
        return origin + markdown
    heading, rest = markdown.split("\n", 1)
    return f"{heading}\n{origin}{rest}"


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Write formulas as MathML, mark long code, keep an error with its sign, link a notebook."""

    def formula(match: re.Match[str]) -> str:
        display = "inline" if match[2] == "(" else "block"
        text = convert(html.unescape(match[3]).strip(), display=display)
        text = PRIME.sub(r"\1<mo lspace='0' rspace='0'>\2</mo>", text)  # raised by its font
        text = SIGN.sub(r"\1<mo form='prefix'>\2</mo>", text)
        text = SLASH.sub(r"<mo lspace='.06em' rspace='.06em'>\1</mo>", text)
        text = BAR.sub(r"<mo stretchy='false' lspace='0' rspace='0'>\1</mo>", text)
        text = text.replace("<mi>;</mi>", "<mo lspace='0' rspace='.17em'>;</mo>")
        text = text.replace("<mi>&#x00394;", "<mi mathvariant='normal'>&#x00394;")
        text = re.sub("<mo>(min|max)</mo>", r"<mi>\1</mi>", text)
        text = ALONE.sub(" lspace='0' rspace='0'>", text)
        text = LN.sub(r"\1<mspace width='.17em'/>", text)
        return text if display == "inline" else f'<div class="formula">{text}</div>'

    if page.file.src_uri.endswith(".ipynb"):
        content = re.sub(r'(href="[\w/-]+)\.md(["#])', r"\1.html\2", content)
        content = content.replace('<div class="highlight-', '<div tabindex="0" class="highlight-')
        return content.replace(" ± ", " ±&nbsp;")
    defaults = {field.name: repr(field.default) for field in fields()}
    content = PRIVATE.sub(lambda match: html.escape(defaults[match[3]]) + match[1], content)
    content = DIVIDED.sub(" ", content)
    content = re.sub(r"</code>\s+\)", "</code>)", LONG.sub(_long, content))
    up = "../" * page.file.src_uri.count("/")
    content = PARTS.sub(lambda part: _linked_text(part[0], up), content)
    content = CELL.sub(_cell, PARTS.sub(_text, FORMULA.sub(formula, content)))
    content = re.sub(r'(?<=<span class="doc doc-object-name )([^>]*>)([\w.]+)', _dotted, content)
    return BESIDE.sub(_beside, content)


def _beside(match: re.Match[str]) -> str:
    """Return a formula that its bracket and its point stay beside."""
    return f'<span class="unbroken">{match[0]}</span>' if match[1] or match[3] else match[0]


def _long(match: re.Match[str]) -> str:
    """Return long code, which a line may end after _ or ). but not within --option or -m."""
    code = re.sub(r"(?<![\w-])--?[A-Za-z][\w-]*", UNBROKEN, match[1])
    kind = "long endless" if len(match[1]) > 90 else "long"  # than the lines of a wide screen
    code = re.sub(r"(?<=[a-z])_(?=[a-z])|(?<=[)])[.](?=[a-z])", r"\g<0><wbr>", code)
    return f'<code class="{kind}">{code}</code>'


def _dotted(match: re.Match[str]) -> str:
    """Return a heading's dotted name, which a line may end after a dot."""
    return match[1] + match[2].replace(".", ".<wbr>")


def _linked_text(part: str, up: str) -> str:
    """Return one of PARTS; text that names a file of docs/ links to its page."""
    return part if part.startswith("<") else _linked(part, up)


def _text(match: re.Match[str]) -> str:
    """Return text whose numbers, names and errors are not divided, with powers raised."""
    if match[0].startswith("<h"):  # in a heading only 50 000 and the like
        return GLUE.sub("&nbsp;", match[0])
    if match[0].startswith("<"):
        return match[0]
    text = NUMBERED.sub(r"\1&nbsp;", GLUE.sub("&nbsp;", match[0])).replace(" ± ", "&nbsp;±&nbsp;")
    text = SHAPE.sub(lambda shape: shape[0].replace(" ", "&nbsp;"), text)
    return RANGE.sub(UNBROKEN, typeset(text))


def _cell(match: re.Match[str]) -> str:
    """Return a table's cell: an error may have a line, short words are unbroken, text is wide.

    In a long list each long code begins a line.
    """
    style, inner = match.groups()
    inner = SHORT.sub(lambda code: re.sub(" (?=--?[A-Za-z])", " <wbr>", code[0]), inner)
    inner = re.sub(r"(?<=\d)&nbsp;(±&nbsp;[\d.]+)", r' <span class="error">\1</span>', inner)
    if "<" not in inner:
        is_short = " " in inner and len(html.unescape(inner)) <= 10  # "dpmpp 2"
        inner = re.sub("(?s).+" if is_short else WORD, UNBROKEN, inner)
    length = len(html.unescape(re.sub("<[^>]*>", "", inner)))
    if length > 60:
        inner = re.sub(
            r'(?<=[,;]) (?=<code class="long)|(?<=:) (?=<code[^>]*>test_)', "<br>", inner
        )
    kind = ' class="sentence"' if length > 60 else ' class="phrase"' if length > 24 else ""
    return f"<td{kind if 'right' not in style else ''}{style}>{inner}</td>"

"""A finished table or figure as files: csv, md, tex (booktabs), html (a fragment) and json."""

import csv
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metrics.table import cell, write
from scripts.paper.config import Config

TEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
       "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
       "δ": r"$\delta$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "é": r"\'e",
       **{sign: rf"\{sign}" for sign in "&%$#_"}}  # fmt: skip


class Block(NamedTuple):
    """One grid of cells with a caption; a page has one or several."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]  # column -> text, number, None or (value, error or None)
    bold: frozenset[tuple[int, str]] = frozenset()  # (place of the row, column)


class Page(NamedTuple):
    """Everything that is told of one table or figure."""

    name: str  # of the files
    title: str  # with the scale, see ``heading``
    kind: str
    scale: str | None  # "paper" or "embedded"; None: it has none
    blocks: Sequence[Block]
    data: Sequence[Mapping[str, Any]]  # the rows in full, mappings within mappings, for csv, json
    notes: Sequence[str] = ()
    made_by: Sequence[Mapping[str, Any]] = ()  # provenance, each kind once
    files: Sequence[str] = ()  # of pictures, beside the page


def heading(config: Config, scale: str | None, data: str = "") -> str:
    """``Table 2, embedded scale (digits): ...``, from the file's name and title."""
    found = re.fullmatch(r"(\D+?)(\d.*)", config.name)
    kind, number = (found[1], found[2]) if found else (config.name, "")
    label = {"table": "Table", "fig": "Figure", "figure": "Figure"}.get(kind, kind)
    told = f", {scale} scale ({data})" if scale and data else f", {scale} scale" if scale else ""
    return f"{label} {number.replace('_', ', ')}".strip() + f"{told}: {config.title}"


def best_cells(
    rows: Sequence[Mapping[str, Any]], best: Mapping[str, str], groups: Sequence[Any]
) -> frozenset[tuple[int, str]]:
    """The cells that hold the best value of their column within their group; ties are all in it.

    ``best``: column -> "low" or "high"; ``groups``: of every row. A group of one has no best.
    """
    found = set()
    for column, direction in best.items():
        for group in set(groups):
            values = {i: _number(row.get(column)) for i, row in enumerate(rows)
                      if groups[i] == group}  # fmt: skip
            known = {i: value for i, value in values.items() if value is not None}
            if len(known) > 1:
                top = (min if direction == "low" else max)(known.values())
                found |= {(i, column) for i, value in known.items() if value == top}
    return frozenset(found)


def write_page(folder: str | Path, page: Page) -> list[Path]:
    """Write NAME.csv, .md, .tex, .html and .json into ``folder``, each whole; their paths."""
    content = {"csv": to_csv(page.data), "md": to_md(page), "tex": to_tex(page),
               "html": to_html(page), "json": to_json(page)}  # fmt: skip
    return [write(Path(folder) / f"{page.name}.{end}", text) for end, text in content.items()]


def sixth(value: float) -> float | None:
    """Six significant digits, all that float32 knows; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Full precision; a value within mappings gets the names on its way: ``ours.fd``."""
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def to_json(page: Page) -> str:
    """All of the page but its layout; ``columns`` are those of every block."""
    told = page._asdict() | {"rows": page.data}
    told["columns"] = [[block.caption, *block.columns] for block in page.blocks]
    del told["blocks"], told["data"]
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_md(page: Page) -> str:
    """Markdown for people: the blocks, the pictures, the notes and who made it."""
    parts = [f"# {page.title}\n"]
    for block in page.blocks:
        lines = [[_escaped(text) for text in line] for line in _cells(block, "**{}**")]
        rule = ["---:" if right else "---" for right in _numeric(block)]
        grid = "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))
        parts += [f"{block.caption}\n", grid]
    parts += [f"![{Path(file).stem}]({file})\n" for file in page.files if file.endswith(".png")]
    parts += [f"{note}\n" for note in page.notes]
    parts += [f"Made by {line}.\n" for line in _makers(page, "`{}`")]
    return "\n".join(parts)


def to_tex(page: Page) -> str:
    """A LaTeX table for the package booktabs; one tabular per block."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(page.title)}}}",
             rf"\label{{tab:{page.name}}}"]  # fmt: skip
    for block in page.blocks:
        head, *body = _cells(block, r"\textbf{{{}}}", _tex)
        align = "".join("r" if right else "l" for right in _numeric(block))
        lines += [
            rf"\par\smallskip {_tex(block.caption)}\par\smallskip",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    notes = [*page.notes, *(f"Made by {line}." for line in _makers(page, "{}"))]
    lines += [r"\par\smallskip\footnotesize", *(rf"{_tex(note)}\par" for note in notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_html(page: Page) -> str:
    """A <section> of plain tables in ASCII, to be read alone or within a larger page."""
    lines = [f'<section id="{page.name}" class="result">', f"<h2>{html.escape(page.title)}</h2>"]
    for block in page.blocks:
        head, *body = _cells(block, "<strong>{}</strong>", html.escape)
        sides = [' class="number"' if right else "" for right in _numeric(block)]
        lines += ['<figure class="block">',
                  f"<figcaption>{html.escape(block.caption)}</figcaption>",
                  '<div class="scroll"><table>']  # fmt: skip
        lines.append("<thead>" + _line("th", head, sides) + "</thead>")
        lines += [_line("td", line, sides) for line in body]
        lines.append("</table></div></figure>")
    lines += [f'<div class="scroll"><img src="{html.escape(f)}" alt="{html.escape(Path(f).stem)}">'
              "</div>" for f in page.files if f.endswith((".png", ".svg"))]  # fmt: skip
    lines += [f"<p>{html.escape(note)}</p>" for note in page.notes]
    makers = _makers(page, "{}")
    lines += [f'<p class="made-by">Made by {html.escape(line)}.</p>' for line in makers]
    text = "\n".join([*lines, "</section>"]) + "\n"
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _cells(block: Block, strong: str, escape: Any = str) -> list[list[str]]:
    """The head and one line of cells per row; the best ones within ``strong``."""
    lines = [[escape(column) for column in block.columns]]
    for index, row in enumerate(block.rows):
        texts = {column: escape(cell(row.get(column))) for column in block.columns}
        lines.append(
            [strong.format(t) if (index, c) in block.bold else t for c, t in texts.items()]
        )
    return lines


def _line(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    row = zip(sides, cells, strict=True)
    return "<tr>" + "".join(f"<{tag}{side}>{text}</{tag}>" for side, text in row) + "</tr>"


def _numeric(block: Block) -> list[bool]:
    """Whether a column holds numbers, which stand to the right."""
    return [all(_counts(row.get(column)) for row in block.rows) for column in block.columns]


def _counts(value: Any) -> bool:
    """Whether a cell is a number, one with an error, one in letters, or nothing."""
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+(\.\d+)?", value) is not None
    return value is None or isinstance(value, int | float | tuple)


def _number(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) else value
    return value if isinstance(value, int | float) else None


def _makers(page: Page, code: str) -> list[str]:
    """One line per provenance: command, commit, device, versions."""
    lines = []
    for one in page.made_by:
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        command = code.format(one["command"])
        lines.append(f"{command} at commit {one['commit']} on {one['device']} with {versions}")
    return lines


def _flat(row: Mapping[str, Any], way: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{way}{key}.")
        else:
            yield way + key, value


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)

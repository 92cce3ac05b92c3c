"""A page of results, one table or figure: as .json, .csv, .md, .tex (booktabs) and .html."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from erk.io.atomic import save_file
from metrics.report import is_numeric, number, to_markdown
from scripts.paper.html import to_html

if TYPE_CHECKING:
    from pandas import DataFrame

Cell = str | int | float | None | tuple[float | None, float | None]
"""A text, a number, nothing, or (value, standard error)."""
TEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
       "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
       "δ": r"$\delta$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "é": r"\'e",
       "²": r"$^2$", **{sign: rf"\{sign}" for sign in "&%$#_"}}  # fmt: skip

COMMANDS = {
    r"^-m scripts\.paper\.reproduce --processes auto all\b": "bash scripts/reproduce_all.sh",
    r"^(?:-m scripts\.paper\.reproduce|scripts/(?:paper/)?reproduce\.py) --processes auto (\w+)":
        r"bash scripts/\1.sh",
    r"^-m scripts\.paper\.demo": "bash scripts/demo.sh",
    r"^-m ": "python -m ",
    r"^(?=\S+\.py\b)": "python ",
}  # fmt: skip
"""Pattern of a recorded command -> what users type; the first that matches holds."""


class Table(BaseModel):
    """One grid of cells with a caption."""

    caption: str
    columns: list[str]
    rows: list[dict[str, Cell]]  # column -> cell; a missing column is an empty cell
    bold: list[tuple[int, str]] = []  # (index of the row, column)

    def frame(self, escape: Callable[[str], str] = str, strong: str = "{}") -> "DataFrame":
        """The cells as text; the bold ones are formatted with ``strong``."""
        import pandas as pd  # late: half a second

        texts = []
        for index, row in enumerate(self.rows):
            bold = {column for at, column in self.bold if at == index}
            cells = {column: escape(number(row.get(column))) for column in self.columns}
            texts.append([strong.format(cells[c]) if c in bold else cells[c] for c in cells])
        return pd.DataFrame(texts, columns=[escape(column) for column in self.columns])

    def to_md(self) -> str:
        """Return the cells as a Markdown table."""
        return to_markdown(self.rows, self.columns, self.bold)

    def numeric(self) -> list[bool]:
        """Return whether each column holds numbers, which are aligned to the right."""
        return [is_numeric(self.rows, name) for name in self.columns]


def table_of(caption: str, rows: Sequence[Mapping[str, Cell]]) -> Table:
    """Return a table with the columns of its first row."""
    return Table(caption=caption, columns=list(rows[0]), rows=[dict(row) for row in rows])


class Page(BaseModel):
    """All that a table or figure of the paper shows; the .json file holds it in full."""

    name: str  # of the files
    title: str  # with the scale
    kind: str
    scale: str | None  # of configs/scales.yaml, or "paper"; None: the same at all
    tables: list[Table]
    rows: list[dict[str, Any]]  # the numbers in full precision, for .csv and .json
    notes: list[str] = []
    made_by: list[dict[str, Any]] = []  # provenance, each kind once
    files: list[str] = []  # images beside the page
    finished: dict[str, dict[str, Any]] = {}  # row -> its numbers as scripts.paper.rows keeps them

    def provenance(self, code: str = "{}") -> list[str]:
        """One line per provenance: command, commit, device and versions."""
        return [
            f"{code.format(as_typed(one['command']))} at commit {one['commit']} on "
            f"{one['device']} with "
            + ", ".join(f"{name} {version}" for name, version in one["versions"].items())
            for one in self.made_by
        ]


def as_typed(command: str) -> str:
    """Return a recorded command as users type it, from the root of the repository."""
    for pattern, typed in COMMANDS.items():
        command, matches = re.subn(pattern, typed, command)
        if matches:
            break
    return command


def best_cells(
    rows: Sequence[Mapping[str, Any]], best: Mapping[str, str], groups: Sequence[Any]
) -> list[tuple[int, str]]:
    """Return the cells with the best value of their column within their group, ties included.

    ``best``: column -> "low" or "high"; ``groups``: one per row. A group of one has no best.
    """
    cells = set()
    for column, direction in best.items():
        for group in set(groups):
            values = {i: _number(row.get(column)) for i, row in enumerate(rows)
                      if groups[i] == group}  # fmt: skip
            known = {i: value for i, value in values.items() if value is not None}
            if len(known) > 1:
                top = (min if direction == "low" else max)(known.values())
                cells |= {(i, column) for i, value in known.items() if value == top}
    return sorted(cells)


def read_page(path: Path) -> Page:
    """Read the .json file of a page. Raises ValueError with one sentence."""
    try:
        return Page.model_validate_json(path.read_bytes())
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        key = ".".join(map(str, one["loc"]))
        raise ValueError(
            f"{path} is not a page of this version ({key}: {one['msg']}): reproduce {path.stem} "
            "again, or remove the file"
        ) from None


def write_page(
    folder: Path,
    page: Page,
    images: Mapping[str, bytes] | None = None,
    ends: Sequence[str] = ("json", "csv", "md", "tex", "html"),
) -> list[Path]:
    """Write NAME.json, .csv, .md, .tex and .html and the images, and return their paths."""
    pages = [save_file(folder / f"{page.name}.{end}", WRITERS[end](page)) for end in ends]
    return [*pages, *(save_file(folder / name, data) for name, data in (images or {}).items())]


def significant(value: float) -> float | None:
    """Round to six significant digits, the precision of float32; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def flatten(row: Mapping[str, Cell]) -> dict[str, Any]:
    """Split each (value, error) of a row into ``x`` and ``x_se``."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, tuple):
            flat[name], flat[f"{name}_se"] = value
        else:
            flat[name] = value
    return flat


def to_json(page: Page) -> str:
    """Return the page as JSON; the finished rows take a line each."""
    form: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False}
    content = page.model_dump(mode="json")
    rows = content.pop("finished")
    lines = [f"  {json.dumps(name, **form)}: {json.dumps(one, **form)}"
             for name, one in rows.items()]  # fmt: skip
    kept = ",\n".join(lines)
    text = json.dumps(content, indent=1, **form).removesuffix("\n}")
    return text + ',\n "finished": {' + (f"\n{kept}\n " if lines else "") + "}\n}\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows in full precision; nested mappings become columns such as ``ours.fd``."""
    import pandas as pd  # late: half a second

    flat = pd.DataFrame([dict(_flat(row)) for row in rows], dtype=object)
    return flat.to_csv(index=False, lineterminator="\n")


def to_md(page: Page) -> str:
    """Return the page as Markdown."""
    parts = [f"# {page.title}\n"]
    for table in page.tables:
        parts += [f"{table.caption}\n"] if table.caption else []
        parts.append(table.to_md())
    parts += [f"![{Path(file).stem}]({file})\n" for file in page.files if file.endswith(".png")]
    parts += [f"{note}\n" for note in page.notes]
    parts += [f"Made by {line}.\n" for line in page.provenance("`{}`")]
    return "\n".join(parts)


def to_tex(page: Page) -> str:
    """Return the page as a LaTeX table for the package booktabs, one tabular per table."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(page.title)}}}",
             rf"\label{{tab:{page.name}}}"]  # fmt: skip
    for table in page.tables:
        align = "".join("r" if right else "l" for right in table.numeric())
        frame = table.frame(_tex, r"\textbf{{{}}}")
        lines += [
            rf"\par\smallskip {_tex(table.caption)}\par\smallskip",
            frame.to_latex(index=False, escape=False, column_format=align).rstrip(),
        ]
    notes = [*page.notes, *(f"Made by {line}." for line in page.provenance())]
    lines += [r"\par\smallskip\footnotesize", *(rf"{_tex(note)}\par" for note in notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)


def _number(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) else value
    return value if isinstance(value, int | float) else None


WRITERS: dict[str, Callable[[Page], str]] = {
    "json": to_json,
    "csv": lambda page: to_csv(page.rows),
    "md": to_md,
    "tex": to_tex,
    "html": to_html,
}
"""Ending of a file of a page -> its text."""

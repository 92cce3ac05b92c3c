"""results/index.html: one page of all tables and figures that are there, without outside requests.

It is made from the files of each page alone, so that it can be made again at any time.
"""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from metrics.table import cell, write
from scripts.paper.config import config_names
from scripts.paper.traces import trace_svg

TEMPLATE = Path(__file__).with_suffix(".html")
VARIANTS = ("", "-as-printed", "-paper", "-paper-as-printed")  # see config.page_name
CARD = ("settings", "seeds", "images", "batch", "nfe", "guide_nfe", "processes", "seconds",
        "command", "commit", "device", "versions")  # fmt: skip
"""What a run card says of a row, in this order."""


class Part(NamedTuple):
    """One page: its name, what json says of it, and its html."""

    name: str
    told: Mapping[str, Any]
    text: str


def write_index(folder: str | Path) -> Path:
    """Write index.html beside the pages in ``folder``; its path."""
    return write(Path(folder) / "index.html", index_of(Path(folder)))


def index_of(folder: Path) -> str:
    """The page of all tables and figures whose files are in ``folder``."""
    parts = [part for name in config_names() for part in _parts(folder, name)]
    there = {part.name for part in parts}
    lacking = [name for name in config_names() if not any(name + v in there for v in VARIANTS)]
    links = [f'<a href="#{part.name}">{_label(part)}</a>' for part in parts]
    missing = f'<p class="note">Not made yet: {", ".join(lacking)}.</p>' if lacking else ""
    sections = [_section(folder, part) for part in parts]
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        links="\n".join(links), missing=missing, sections="\n".join(sections)
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _parts(folder: Path, name: str) -> list[Part]:
    found = []
    for variant in VARIANTS:
        place = folder / f"{name}{variant}.json"
        if place.is_file() and place.with_suffix(".html").is_file():
            told = json.loads(place.read_text("utf-8"))
            found.append(Part(place.stem, told, place.with_suffix(".html").read_text("utf-8")))
    return found


def _label(part: Part) -> str:
    """Table 2, from its title; with what makes it another page than the plain one."""
    start = re.match(r"\w+ \d+", part.told["title"])
    variant = next((v for v in VARIANTS[:0:-1] if part.name.endswith(v)), "")
    return html.escape((start[0] if start else part.name) + variant.replace("-", " "))


def _section(folder: Path, part: Part) -> str:
    text = part.text
    for name in part.told["files"]:
        text = text.replace(f'src="{html.escape(name)}"', f'src="{_data(folder / name)}"')
    more = [_viewer(folder, part.told["rows"]) if part.told["kind"] == "grid" else "",
            _cards([row for row in part.told["rows"] if row.get("measured")])]  # fmt: skip
    end = "</section>"
    return text.rstrip().removesuffix(end) + "\n".join(filter(None, more)) + end


def _data(place: Path) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(place.read_bytes()).decode("ascii")


def _cards(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each row's numbers were made with, folded."""
    if not rows:
        return ""
    lines = ['<details class="cards"><summary>Run cards: what each row was made with</summary>']
    for row in rows:
        lines.append(f"<details><summary>{html.escape(row['name'])}</summary><dl>")
        for name in CARD:
            if row.get(name) is not None:
                lines.append(f"<dt>{name}</dt><dd>{html.escape(_plain(row[name]))}</dd>")
        lines.append("</dl></details>")
    return "\n".join([*lines, "</details>"])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(one)}" for key, one in value.items() if one is not None)
    return cell(value)


def _viewer(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Pictures of the same seeds with a slider for w_stiff, and one for w_con where it varies."""
    cells = [
        {"w_stiff": row["w_stiff"], "w_con": row["w_con"], "image": _data(folder / row["sheet"]),
         "told": f"{row['row']}: {row['steps']} steps, NFE {row['NFE']:g}"
                 + ("" if row["w_con"] is None else f", w_con {row['w_con']:g}")}
        for row in rows
    ]  # fmt: skip
    thresholds = sorted({one["w_con"] for one in cells if one["w_con"] is not None})
    sliders = [_slider("w_stiff", sorted({one["w_stiff"] for one in cells}))]
    sliders += [_slider("w_con", thresholds)] if len(thresholds) > 1 else []
    return "\n".join([
        '<figure class="viewer">',
        *sliders,
        f'<img src="{cells[0]["image"]}" alt="{html.escape(cells[0]["told"])}">',
        f"<figcaption>{html.escape(cells[0]['told'])}</figcaption>",
        f'<div class="scroll">{trace_svg(rows)}</div>',
        f'<script type="application/json">{_script(cells)}</script>',
        "</figure>",
    ])  # fmt: skip


def _slider(name: str, values: Sequence[float]) -> str:
    return (
        f'<label>{name} <input type="range" min="0" max="{len(values) - 1}" step="1" value="0" '
        f'aria-label="{name}" data-values="{html.escape(json.dumps(values))}">'
        f"<output>{values[0]:g}</output></label>"
    )


def _script(value: Any) -> str:
    """JSON that cannot end the element around it."""
    return json.dumps(value).replace("<", "\\u003c")

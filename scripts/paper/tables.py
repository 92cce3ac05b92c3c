"""Tables of sampled rows: ours, the published values and the differences; what they say."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from metrics.protocols import find_protocol
from metrics.report import number
from scripts.paper.config import AnyConfig, Measured, Request, Row, Sampled, page_name
from scripts.paper.page import Page, Table, best_cells, to_md, write_page
from scripts.paper.plan import describe, nfe_text
from scripts.paper.rows import Finished, measure_rows, paired

EMBEDDED = {"fd": "low", "precision": "high", "recall": "high", "is": "high", "accuracy": "high"}
"""Columns at embedded scale, and which value is best."""
SWAP = {"precision": "recall", "recall": "precision"}  # see the note of protocol erk-paper
LEVEL = 0.95  # of the intervals


class Content(NamedTuple):
    """What a page shows beside what its config says."""

    tables: Sequence[Table]
    rows: Sequence[Mapping[str, Any]]  # the numbers in full precision
    notes: Sequence[str]
    images: Mapping[str, bytes] = {}  # suffix of the page's name -> PNG file


class Change(NamedTuple):
    """A paired difference of one row."""

    row: str
    value: float
    exceeds: bool  # whether its 95 % interval excludes 0


def run(config: Sampled, request: Request) -> list[Path]:
    """Measure the chosen rows that are missing, write the table and return the paths.

    The table shows all finished rows, chosen or not, and names the missing ones. With ``shard``
    only features are computed. Raises ValueError or OSError with one sentence.
    """
    if request.dry_run:
        click.echo(describe(config, request))
        return []

    def update(finished: Sequence[Finished]) -> list[Path]:
        return write_page(request.results, page_of(config, request, finished))

    finished = measure_rows(config, request, update)
    if finished is None:
        return []
    click.echo(to_md(page_of(config, request, finished)))
    return update(finished)


def page_of(config: Measured, request: Request, finished: Sequence[Finished]) -> Page:
    """Return the page of a table whose rows are finished, or still missing ({})."""
    best = config.best if request.scale == "paper" else EMBEDDED
    columns = config.columns if request.scale == "paper" else list(EMBEDDED)
    others = {row.name: one for row, one in zip(config.rows, finished, strict=True)}
    data = [
        _row(row, one, others.get(row.against or "", {}), columns, _published_n(config, request))
        for row, one in zip(config.rows, finished, strict=True)
    ]
    references = dict.fromkeys(one["reference"] for one in finished if one)
    source = ", ".join(references) or config.ref.get(request.scale, "")
    source += "; settings as printed" if request.as_printed else ""
    makers = {str(one["made_by"]): dict(one["made_by"]) for one in finished if one}
    return Page(
        name=page_name(config, request),
        title=heading(config, request.scale, source),
        kind=config.kind,
        scale=request.scale,
        tables=tables_of(config, request, data),
        rows=data,
        notes=_notes(config, request, finished, data, best),
        made_by=list(makers.values()),
    )


def tables_of(config: Measured, request: Request, data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return the tables of measured values, of published ones and of paired differences."""
    best = config.best if request.scale == "paper" else EMBEDDED
    columns = config.columns if request.scale == "paper" else list(EMBEDDED)
    tables = [
        _measured(config, data, columns, best),
        _published(config, data, columns, request),
        _compared(data, columns),
    ]
    return [table for table in tables if table.rows]


def heading(config: AnyConfig, scale: str | None, data: str = "") -> str:
    """Return ``Table 2, embedded scale (digits): ...``, from the file's name and title."""
    match = re.fullmatch(r"(\D+?)(\d.*)", config.name)
    kind, number = (match[1], match[2]) if match else (config.name, "")
    label = {"table": "Table", "fig": "Figure", "figure": "Figure"}.get(kind, kind)
    suffix = f", {scale} scale" + (f" ({data})" if data else "") if scale else ""
    return f"{label} {number.replace('_', ', ')}".strip() + f"{suffix}: {config.title}"


def write_content(
    config: AnyConfig,
    request: Request,
    dataset: str | None,
    content: Content,
    made_by: Mapping[str, Any] | None,
) -> list[Path]:
    """Write the page of a table or figure with its images and return the paths.

    ``dataset``: what represents the paper's data, for the title; None where nothing is sampled
    and both scales are the same.
    """
    name = page_name(config, request)
    images = {f"{name}{suffix}.png": data for suffix, data in content.images.items()}
    scale = None if dataset is None else request.scale
    page = Page(
        name=name,
        title=heading(config, scale, dataset or ""),
        kind=config.kind,
        scale=scale,
        tables=list(content.tables),
        rows=[dict(row) for row in content.rows],
        notes=[*content.notes, f"The paper: {config.paper}", *config.notes],
        made_by=[] if made_by is None else [dict(made_by)],
        files=list(images),
    )
    return write_page(request.results, page, images)


def verdict(what: str, changes: Sequence[Change], words: tuple[str, str], first: str = "") -> str:
    """Count the paired differences beyond noise in one sentence; "" without any.

    ``words``: for a lower and for a higher value, such as ("better", "worse"); ``first``: the one
    of them that is named first.
    """
    groups: dict[str, list[str]] = {word: [] for word in sorted(words, key=lambda w: w != first)}
    for change in changes:
        if change.exceeds:
            groups[words[0] if change.value < 0 else words[1]].append(change.row)
    parts = [f"{word} in {len(rows)} ({'; '.join(rows)})" for word, rows in groups.items() if rows]
    rest = len(changes) - sum(map(len, groups.values()))
    parts += [f"not beyond noise in {rest}"] if rest else []
    return f"{what}, of {len(changes)} paired differences: {', '.join(parts)}." if changes else ""


def _row(
    row: Row, one: Finished, other: Finished, columns: Sequence[str], n: int
) -> dict[str, Any]:
    """Return all about a row. ``n``: the number of images at which published values compare."""
    data: dict[str, Any] = {"name": row.name, "against": row.against, "published": row.published}
    if not one:
        return data | {"measured": False}
    ours = {name: one.get(name) for name in columns}
    minus = {}
    if one["n"] == n:
        printed = {name: row.published.get(SWAP.get(name, name)) for name in columns}
        both = [name for name in columns if None not in (ours[name], printed[name])]
        minus = {name: one[name] - printed[name] for name in both}
    changes = paired(one, other) if other else {}
    is_complete = one["spent"]["images"] == one["n"]
    return data | {
        "measured": True,
        "settings": one["settings"],
        "seeds": one["seeds"],
        "images": one["n"],
        "batch": one["batch"],
        "nfe": one["nfe"],
        "guide_nfe": one["guide_nfe"],
        "ours": ours,
        "se": {name: one.get(f"{name}_se") for name in columns},
        "minus_published": minus,
        "paired": {name: changes[name] for name in columns if name in changes},
        "seconds": one["spent"]["seconds"] if is_complete else None,
        "processes": one["spent"]["processes"],
        **one["made_by"],
    }


def _published_n(config: Measured, request: Request) -> int:
    """Return the number of images of the published values; 0 at embedded scale, where the data
    are others."""
    return config.num["paper"] if request.scale == "paper" else 0


def _measured(
    config: Measured,
    data: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    best: Mapping[str, str],
) -> Table:
    rows = []
    for one in data:
        row: dict[str, Any] = {"row": one["name"], "seconds": one.get("seconds")}
        if one["measured"]:
            row["NFE"] = nfe_text(round(one["nfe"], 2), one["guide_nfe"])
            row |= {name: (one["ours"][name], one["se"][name]) for name in columns}
        rows.append(row)
    return Table(
        caption="Measured here, value ± standard error; bold: best of its group.",
        columns=["row", "NFE", *columns, "seconds"],
        rows=rows,
        bold=best_cells(rows, best, _groups(config)),
    )


def _published(
    config: Measured, data: Sequence[Mapping[str, Any]], columns: Sequence[str], request: Request
) -> Table:
    """Published values with as many decimals as their column has, and ours minus them."""
    names = list(dict.fromkeys(name for row in config.rows for name in row.published))
    if not names:
        return Table(caption="", columns=[], rows=[])
    decimals = {
        name: max(len(repr(row.published.get(name, 0)).partition(".")[2]) for row in config.rows)
        for name in names
    }
    swapped = {name: f"{name}, swapped" for name in names if name in SWAP}
    rows = []
    for one in data:
        shown = {name: f"{value:.{decimals[name]}f}" for name, value in one["published"].items()}
        shown |= {new: shown[SWAP[name]] for name, new in swapped.items() if SWAP[name] in shown}
        minus = {f"ours − {name}": value for name, value in one.get("minus_published", {}).items()}
        rows.append({"row": one["name"]} | shown | minus)
    more = [f"ours − {name}" for name in columns] if request.scale == "paper" else []
    note = "" if more else " Another data set: no difference to them is formed."
    published = [row.published for row in config.rows]
    return Table(
        caption=f"Published.{note} {config.paper}",
        columns=["row", *names, *swapped.values(), *more],
        rows=rows,
        bold=best_cells(published, config.best, _groups(config)),
    )


def _groups(config: Measured) -> list[Any]:
    """Return the group of each row: its rows compete for the best values, as in the paper."""
    names = config.options.group_by
    return [tuple(row.settings.get(name) for name in names) for row in config.rows]


def _compared(data: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    pairs = [one for one in data if one.get("paired")]
    rows: list[dict[str, Any]] = [
        {"row": one["name"], "minus": one["against"]}
        | {name: (pair["value"], pair["error"]) for name, pair in one["paired"].items()}
        for one in pairs
    ]
    beyond = [(i, name) for i, one in enumerate(pairs)
              for name, pair in one["paired"].items() if pair["exceeds"]]  # fmt: skip
    return Table(
        caption="Differences of two rows of the same seeds ± standard error; bold: beyond noise "
        "(the 95 % interval excludes 0).",
        columns=["row", "minus", *columns],
        rows=rows,
        bold=beyond,
    )


def verdicts(best: Mapping[str, str], data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence per column on its paired differences, and how many arise by chance."""
    notes = []
    for name, direction in best.items():
        changes = [Change(one["name"], one["paired"][name]["value"], one["paired"][name]["exceeds"])
                   for one in data if name in one.get("paired", {})]  # fmt: skip
        words = ("better", "worse") if direction == "low" else ("worse", "better")
        notes.append(verdict(name, changes, words, first="better"))
    pairs = sum(len(one.get("paired", {})) for one in data)
    if pairs:
        notes.append(f"Of {pairs} differences that are 0 in truth, about {pairs * (1 - LEVEL):.0f} "
                     "would lie outside their 95 % interval by chance.")  # fmt: skip
    return [note for note in notes if note]


def _notes(
    config: Measured,
    request: Request,
    finished: Sequence[Finished],
    data: Sequence[Mapping[str, Any]],
    best: Mapping[str, str],
) -> list[str]:
    known = [one for one in finished if one]
    notes = list(config.notes)
    for n, seeds in dict.fromkeys((one["n"], one["seeds"]) for one in known):
        notes.append(f"{n} images per row, seeds {seeds}, the same for all rows.")
    if request.scale == "embedded":
        notes.append(
            "Embedded scale: small networks of handwritten digits stand in for the paper's, with "
            f"the paper's settings{_changes(config)}. These are not the paper's numbers."
        )
    notes += verdicts(best, data)
    floors = dict.fromkeys((one["fd_floor"], one["fd_floor_std"]) for one in known
                           if one.get("fd_floor") is not None)  # fmt: skip
    notes += [f"FD floor {number(floor)}: the FD of as many real digits." for floor in floors]
    notes += dict.fromkeys(note for one in known for note in one["notes"])
    if any(one["settings"].get("adaptive_tau") for one in known):
        notes.append("Adaptive steps: NFE is the average over images.")
    if "precision" in config.columns:
        minus = " ours − precision and ours − recall take them swapped."
        note = find_protocol("erk-paper").note
        notes.append(note + (minus if request.scale == "paper" else ""))
    notes.append("Seconds: sampling and measuring, wall-clock; – where a part of the row was "
                 "already in the cache.")  # fmt: skip
    return [*notes, *_missing(config, finished)]


def _missing(config: Measured, finished: Sequence[Finished]) -> Iterable[str]:
    missing = [i for i, one in enumerate(finished) if not one]
    if missing:
        names = "; ".join(config.rows[i].name for i in missing)
        yield (f"NOT MEASURED YET: {len(missing)} of {len(finished)} rows, {names}. Compute them "
               f"with --rows {','.join(map(str, missing))}.")  # fmt: skip


def _changes(config: Measured) -> str:
    """Return what the embedded scale sets otherwise than the paper, balanced labels aside."""
    changes = {name: value for name, value in config.embedded.items() if name != "labels"}
    text = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in changes.items())  # fmt: skip
    return f", but {text}" if text else ""

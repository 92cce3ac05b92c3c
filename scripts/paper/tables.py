"""Tables of sampled rows: ours, the published values and the differences; what they say."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from erk.generation.options import networks_of
from metrics.evaluation import GROUPS
from metrics.protocols import find_protocol
from metrics.report import number
from scripts.paper.config import (
    AnyConfig,
    Measured,
    Request,
    Row,
    Sampled,
    has_scales,
    page_name,
)
from scripts.paper.distance import SEEDS
from scripts.paper.page import Page, Table, best_cells, write_page
from scripts.paper.plan import nfe_text
from scripts.paper.rows import Finished, paired
from scripts.paper.scales import left_out, options_of, scales

SWAP = {"precision": "recall", "recall": "precision"}  # see the note of protocol erk-paper
LEVEL = 0.95  # of the intervals
TREND = ("fd", "distance", "fd_dinov2", "fid")  # columns whose relative change has a meaning
DISTANCE = (
    "distance: mean Euclidean distance of the samples, before they are decoded (their standard "
    f"deviation is 0.5), to the converged solution from the same noise, over the first {SEEDS} "
    "seeds; standard errors leave out blocks of these seeds in turn."
)


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


def write(config: Sampled, request: Request, finished: Sequence[Finished]) -> list[Path]:
    """Write the table of all finished rows, which names the missing ones; return the paths."""
    return write_page(request.results, page_of(config, request, finished))


def page_of(config: Measured, request: Request, finished: Sequence[Finished]) -> Page:
    """Return the page of a table whose rows are finished, or still missing ({})."""
    others = {row.name: one for row, one in zip(config.rows, finished, strict=True)}
    n = 0 if request.is_small else config.num  # of the published values
    data = [
        _row(row, one, others.get(row.against or "", {}), config.columns, n)
        for row, one in zip(config.rows, finished, strict=True)
    ]
    _correct(data)
    references = dict.fromkeys(one["reference"] for one in finished if one)
    makers = {str(one["made_by"]): dict(one["made_by"]) for one in finished if one}
    return Page(
        name=page_name(config, request),
        title=heading(config, request, ", ".join(references) or config.ref or ""),
        kind=config.kind,
        scale=request.scale,
        tables=tables_of(config, request, data),
        rows=data,
        notes=[*_notes(config, request, finished, data), *_missing(config, request, finished)],
        made_by=list(makers.values()),
        finished={name: dict(one) for name, one in others.items() if one},
    )


def tables_of(config: Measured, request: Request, data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return the tables of measured values, of published ones and of paired differences."""
    tables = [
        _measured(config, data),
        _published(config, data, request),
        _compared(data, config.columns),
        *([_trend(data)] if request.is_small else []),
    ]
    return [table for table in tables if table.rows]


def heading(config: AnyConfig, request: Request, data: str = "") -> str:
    """Return ``Table 2 on MNIST: ...``, from the file's name and title.

    ``data``: what paper scale is measured on, for ``Table 2, paper scale (imagenet512): ...``.
    """
    match = re.fullmatch(r"(\D+?)(\d.*)", config.name)
    kind, number = (match[1], match[2]) if match else (config.name, "")
    label = {"table": "Table", "fig": "Figure", "figure": "Figure"}.get(kind, kind)
    start = f"{label} {number.replace('_', ', ')}".strip()
    if has_scales(config, request.scale):
        small = f" on {scales()[request.scale].label}" if request.is_small else ""
        start += small or ", paper scale" + (f" ({data})" if data else "")
        start += ", settings as printed" if request.as_printed else ""
    return f"{start}: {config.title}"


def write_content(
    config: AnyConfig,
    request: Request,
    dataset: str,
    content: Content,
    made_by: Mapping[str, Any] | None,
) -> list[Path]:
    """Write the page of a table or figure with its images and return the paths.

    ``dataset``: what paper scale is sampled with, for the title.
    """
    name = page_name(config, request)
    images = {f"{name}{suffix}.png": data for suffix, data in content.images.items()}
    page = Page(
        name=name,
        title=heading(config, request, dataset),
        kind=config.kind,
        scale=request.scale if has_scales(config, request.scale) else None,
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
    row: Row, one: Finished, other: Finished, columns: Sequence[str], n: int | None
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


def _correct(data: Sequence[Mapping[str, Any]]) -> None:
    """Say of every paired difference whether it is beyond noise among all rows of its column.

    Bonferroni's correction: ``exceeds_all`` needs the level 95 % for all rows together.
    """
    pairs = [one["paired"] for one in data if one.get("paired")]
    for pair in pairs:
        for change in pair.values():
            change["exceeds_all"] = abs(change["value"]) > limit(len(pairs)) * change["error"]


def limit(rows: int) -> float:
    """Return the standard errors beyond which one of so many differences is beyond noise."""
    return float(stdtrit(GROUPS - 1, 1 - (1 - LEVEL) / 2 / rows))


def _measured(config: Measured, data: Sequence[Mapping[str, Any]]) -> Table:
    columns = config.columns
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
        bold=best_cells(rows, config.best, _groups(config)),
    )


def _published(config: Measured, data: Sequence[Mapping[str, Any]], request: Request) -> Table:
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
        if not one["published"]:
            continue
        shown = {name: f"{value:.{decimals[name]}f}" for name, value in one["published"].items()}
        shown |= {new: shown[SWAP[name]] for name, new in swapped.items() if SWAP[name] in shown}
        minus = {f"ours − {name}": value for name, value in one.get("minus_published", {}).items()}
        rows.append({"row": one["name"]} | shown | minus)
    more = [f"ours − {name}" for name in config.columns] if not request.is_small else []
    note = "" if more else " Another data set, so no differences are shown."
    published = [row.published for row in config.rows if row.published]
    groups = [group for row, group in zip(config.rows, _groups(config), strict=True)
              if row.published]  # fmt: skip
    return Table(
        caption=f"Published.{note} {config.paper}",
        columns=["row", *names, *swapped.values(), *more],
        rows=rows,
        bold=best_cells(published, config.best, groups),
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


def _trend(data: Sequence[Mapping[str, Any]]) -> Table:
    """Changes in percent, beside the published ones: data differ, a trend need not."""
    by_name = {one["name"]: one for one in data}
    rows: list[dict[str, Any]] = []
    for one in data:
        if not one.get("paired"):
            continue
        base, row = by_name[one["against"]], {"row": one["name"], "minus": one["against"]}
        for name in TREND:
            if name in one["paired"] and base["ours"][name]:
                scale, change = 100 / base["ours"][name], one["paired"][name]
                row[f"{name}, %"] = (scale * change["value"], scale * change["error"])
            if name in one["published"] and name in base["published"]:
                value = 100 * (one["published"][name] / base["published"][name] - 1)
                row[f"{name}, published, %"] = f"{value:.1f}"
        rows.append(row)
    names = [f"{name}{end}, %" for end in ("", ", published") for name in TREND]
    used = [name for name in names if any(name in row for row in rows)]
    return Table(
        caption="Changes in percent of the row that each one is compared with, ± standard error, "
        "beside the published ones.",
        columns=["row", "minus", *used],
        rows=rows,
    )


def verdicts(config: Measured, data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence per column on its paired differences, and how many arise by chance."""
    notes = []
    pairs = [(one["name"], one["paired"]) for one in data if one.get("paired")]
    for name, direction in config.best.items():
        changes = [Change(row, paired[name]["value"], paired[name]["exceeds"])
                   for row, paired in pairs if name in paired]  # fmt: skip
        words = ("better", "worse") if direction == "low" else ("worse", "better")
        notes.append(verdict(name, changes, words, first="better"))
    if pairs:
        notes.append(_by_chance([paired for _, paired in pairs]))
    return [note for note in notes if note]


def _by_chance(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Say how many rows are compared, and which differences stand that number of comparisons."""
    total = sum(map(len, pairs))
    names = dict.fromkeys(name for pair in pairs for name in pair)
    counts = {name: sum(pair[name]["exceeds_all"] for pair in pairs if name in pair)
              for name in names}  # fmt: skip
    known = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"
    return (
        f"{len(pairs)} rows are compared: if all {total} differences were 0 in truth, about "
        f"{total * (1 - LEVEL):.0f} would be beyond noise by chance. Beyond noise "
        f"among all rows of a column (Bonferroni: {limit(len(pairs)):.2f} standard errors in place "
        f"of {limit(1):.2f}): {known}."
    )


def _notes(
    config: Measured,
    request: Request,
    finished: Sequence[Finished],
    data: Sequence[Mapping[str, Any]],
) -> list[str]:
    known = [one for one in finished if one]
    notes = list(config.notes)
    rows = Counter((one["n"], one["seeds"]) for one in known)
    notes += [f"{count} rows have {n} images, seeds {seeds}."
              for (n, seeds), count in rows.items()]  # fmt: skip
    notes += _of_scale(config, request) if request.is_small else []
    notes += verdicts(config, data)
    notes += _abstaining(data)
    floors = dict.fromkeys((one["n"], one["fd_floor"], one["fd_floor_std"]) for one in known
                           if one.get("fd_floor") is not None)  # fmt: skip
    notes += [f"FD floor {number((floor, spread))}: the FD of {n} real images."
              for n, floor, spread in floors]  # fmt: skip
    notes += dict.fromkeys(note for one in known for note in one["notes"])
    if any("distance" in one for one in known):
        notes.append(DISTANCE)
    if any(one["settings"].get("adaptive_tau") for one in known):
        notes.append("Adaptive steps: NFE is the average over images.")
    if {"precision", "recall"} & {name for row in config.rows for name in row.published}:
        minus = "" if request.is_small else (
            " ours − precision and ours − recall take them swapped.")  # fmt: skip
        notes.append(find_protocol("erk-paper").note + minus)
    notes.append("Seconds: sampling and measuring, wall-clock; – where a part of the row was "
                 "already in the cache.")  # fmt: skip
    return notes


def _of_scale(config: Measured, request: Request) -> list[str]:
    """Say what stands in for the paper's networks, and what differs besides."""
    changes = {name: value for name, value in config.small.settings.items() if name != "labels"}
    weights = {networks_of(options_of(row.settings))[2] for row in config.rows} - {1.0}
    changes |= {"guidance": " and ".join(f"{one:g}" for one in sorted(weights))} if weights else {}
    text = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in changes.items())  # fmt: skip
    notes = [f"{scales()[request.scale].what} stands in for the paper's. Settings are the paper's"
             f"{f', but {text}' if text else ''}. These are not the paper's numbers."]  # fmt: skip
    if any(row.settings.get("erk") == "auto" for row in config.rows):
        notes.append("Rows named auto: the same sampler with erk=\"auto\", which has no weight to "
                     "choose and is not in the paper.")  # fmt: skip
    missing = left_out(config.name, request.scale)
    if missing:
        notes.append(f"Left out, since no network here represents theirs: {'; '.join(missing)}.")
    return notes


def _abstaining(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the rows of auto whose images are those of the row that they are compared with."""
    names = [one["name"] for one in data
             if one.get("paired") and one["settings"].get("erk") == "auto"
             and not any(pair["value"] for pair in one["paired"].values())]  # fmt: skip
    return [f"auto has no correction for these rows: {'; '.join(names)}."] if names else []


def _missing(config: Measured, request: Request, finished: Sequence[Finished]) -> Iterable[str]:
    missing = [i for i, one in enumerate(finished) if not one]
    if missing:
        names = "; ".join(config.rows[i].name for i in missing)
        scale = "" if request.scale == Request().scale else f" --scale {request.scale}"
        yield (f"NOT MEASURED YET: {len(missing)} of {len(finished)} rows, {names}. Compute them "
               f"with{scale} --rows {','.join(map(str, missing))}.")  # fmt: skip

"""From the numbers of a sampled table's rows to its page: ours, the published, the differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from metrics.evaluation import Evaluation, paired_differences
from metrics.protocols import find_protocol
from metrics.report import number
from scripts.paper.config import Config, Request, Row, page_name
from scripts.paper.plan import nfe_text
from scripts.paper.render import Block, Page, best_cells, heading

EMBEDDED = {"fd": "low", "precision": "high", "recall": "high", "is": "high", "accuracy": "high"}
"""Columns at embedded scale, and which value is best."""
SWAP = {"precision": "recall", "recall": "precision"}  # see the note of protocol erk-paper
SURE = 0.95  # of the intervals

Found = Mapping[str, Any]
"""What results/rows says of a row; {}: it is not made yet."""


def page_of(config: Config, request: Request, found: Sequence[Found]) -> Page:
    """The page of a table whose rows were measured, or are still to be ({})."""
    best = config.best if request.scale == "paper" else EMBEDDED
    columns = config.columns if request.scale == "paper" else tuple(EMBEDDED)
    others = {row.name: one for row, one in zip(config.rows, found, strict=True)}
    data = [
        _row(row, one, others.get(row.against or "", {}), columns, _published_n(config, request))
        for row, one in zip(config.rows, found, strict=True)
    ]
    blocks = [_measured(config, data, columns, best), _published(config, data, columns, request),
              _compared(data, columns)]  # fmt: skip
    refs = dict.fromkeys(one["reference"] for one in found if one)
    makers = {str(one["made_by"]): one["made_by"] for one in found if one}
    where = ", ".join(refs) or config.ref.get(request.scale, "")
    where += "; settings as printed" if request.as_printed else ""
    return Page(
        page_name(config, request),
        heading(config, request.scale, where),
        config.kind,
        request.scale,
        [block for block in blocks if block.rows],
        data,
        _notes(config, request, found, data, best),
        list(makers.values()),
    )


def _row(row: Row, one: Found, other: Found, columns: Sequence[str], n: int) -> dict[str, Any]:
    """Everything about a row. ``n``: the number of images at which published values compare."""
    told: dict[str, Any] = {"name": row.name, "against": row.against, "published": row.published}
    if not one:
        return told | {"measured": False}
    ours = {name: one.get(name) for name in columns}
    pairs = paired_differences(_evaluation(one), _evaluation(other)) if other else {}
    minus = {}
    if one["n"] == n:
        printed = {name: row.published.get(SWAP.get(name, name)) for name in columns}
        both = [name for name in columns if None not in (ours[name], printed[name])]
        minus = {name: one[name] - printed[name] for name in both}
    whole = one["spent"]["images"] == one["n"]
    return told | {
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
        "paired": {name: pairs[name]._asdict() for name in columns if name in pairs},
        "seconds": one["spent"]["seconds"] if whole else None,
        "processes": one["spent"]["processes"],
        **one["made_by"],
    }


def _evaluation(one: Found) -> Evaluation:
    """Rebuild the evaluation that a row's file holds."""
    values = {name: one.get(name) for name in find_protocol(one["protocol"]).columns}
    return Evaluation(one["protocol"], one["n"], values, one["replicates"])


def _published_n(config: Config, request: Request) -> int:
    """The number of images of the published values; 0 where they are of another data set."""
    return config.num["paper"] if request.scale == "paper" else 0


def _measured(
    config: Config, data: Sequence[Mapping[str, Any]], columns: Sequence[str], best: Mapping
) -> Block:
    rows = []
    for one in data:
        is_there = one["measured"]
        rows.append(
            {"row": one["name"]}
            | {"NFE": nfe_text(round(one["nfe"], 2), one["guide_nfe"]) if is_there else None}
            | {name: (one["ours"][name], one["se"][name]) for name in columns if is_there}
            | {"seconds": one.get("seconds")}
        )
    caption = "Measured here, value ± standard error; bold: best of its group."
    bold = best_cells(rows, best, _groups(config))
    return Block(caption, ["row", "NFE", *columns, "seconds"], rows, bold)


def _published(
    config: Config, data: Sequence[Mapping[str, Any]], columns: Sequence[str], request: Request
) -> Block:
    """The published values with as many decimals as their column has, and ours minus them."""
    names = list(dict.fromkeys(name for row in config.rows for name in row.published))
    decimals = {
        name: max(len(repr(row.published.get(name, 0)).partition(".")[2]) for row in config.rows)
        for name in names
    }
    swapped = {name: f"{name}, exchanged" for name in names if name in SWAP}
    rows = []
    for one in data:
        shown = {name: f"{value:.{decimals[name]}f}" for name, value in one["published"].items()}
        shown |= {told: shown[SWAP[name]] for name, told in swapped.items() if SWAP[name] in shown}
        minus = {f"ours − {name}": value for name, value in one.get("minus_published", {}).items()}
        rows.append({"row": one["name"]} | shown | minus)
    more = [f"ours − {name}" for name in columns] if request.scale == "paper" else []
    told = "" if more else " Another data set: no difference to them is formed."
    bold = best_cells([row.published for row in config.rows], config.best, _groups(config))
    heads = ["row", *names, *swapped.values(), *more]
    return Block(f"Published.{told} {config.paper}", heads, rows, bold)


def _groups(config: Config) -> list[Any]:
    """Of every row: rows of one group compete for the best values, as in the paper."""
    names = config.options.get("group_by", [])
    return [tuple(row.settings.get(name) for name in names) for row in config.rows]


def _compared(data: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Block:
    pairs = [one for one in data if one.get("paired")]
    rows: list[dict[str, Any]] = [
        {"row": one["name"], "minus": one["against"]}
        | {name: (pair["value"], pair["error"]) for name, pair in one["paired"].items()}
        for one in pairs
    ]
    beyond = {(i, name) for i, one in enumerate(pairs)
              for name, pair in one["paired"].items() if pair["exceeds"]}  # fmt: skip
    caption = ("Differences of two rows of the same seeds ± standard error; bold: beyond noise "
               "(outside the 95 % interval).")  # fmt: skip
    return Block(caption, ["row", "minus", *columns], rows, frozenset(beyond))


def _notes(
    config: Config,
    request: Request,
    found: Sequence[Found],
    data: Sequence[Mapping[str, Any]],
    best: Mapping[str, str],
) -> list[str]:
    made = [one for one in found if one]
    notes = list(config.notes)
    for n, seeds in dict.fromkeys((one["n"], one["seeds"]) for one in made):
        notes.append(f"{n} images per row, seeds {seeds}, the same for all rows.")
    if request.scale == "embedded":
        notes.append(
            "Embedded scale: small networks of handwritten digits stand for the paper's, with the "
            f"paper's settings{_but(config)}. These are not the paper's numbers."
        )
    notes += [_verdict(name, direction, data) for name, direction in best.items()]
    pairs = sum(len(one.get("paired", {})) for one in data)
    if pairs:
        notes.append(f"Of {pairs} differences that are 0 in truth, about {pairs * (1 - SURE):.0f} "
                     "would stand outside their 95 % interval by chance.")  # fmt: skip
    floors = dict.fromkeys((one["fd_floor"], one["fd_floor_std"]) for one in made
                           if one.get("fd_floor") is not None)  # fmt: skip
    notes += [f"FD floor {number(floor)}: what as many real digits get." for floor in floors]
    notes += dict.fromkeys(note for one in made for note in one["notes"])
    if any(one["settings"].get("adaptive_tau") for one in made):
        notes.append("Adaptive steps: NFE is the average over images.")
    if "precision" in config.columns:
        exchanged = " ours − precision and ours − recall exchange them."
        note = find_protocol("erk-paper").note
        notes.append(note + (exchanged if request.scale == "paper" else ""))
    notes.append("Seconds: sampling and measuring, by the wall clock; – for a row of which a part "
                 "was there already.")  # fmt: skip
    lacking = [i for i, one in enumerate(found) if not one]
    if lacking:
        names = "; ".join(config.rows[i].name for i in lacking)
        notes.append(f"NOT MEASURED YET: {len(lacking)} of {len(found)} rows, {names}. Make them "
                     f"by --rows {','.join(map(str, lacking))}.")  # fmt: skip
    return [note for note in notes if note]


def _but(config: Config) -> str:
    """What the embedded scale sets otherwise than the paper, which knows no balanced labels."""
    own = {name: value for name, value in config.embedded.items() if name != "labels"}
    told = ", ".join(f"{name} {value}" for name, value in own.items())
    return f", but {told}" if told else ""


def _verdict(name: str, direction: str, data: Sequence[Mapping[str, Any]]) -> str:
    """What the paired differences of a column say, counted; "" where there are none."""
    groups: dict[str, list[str]] = {"better": [], "worse": []}
    pairs = [(one["name"], one["paired"][name]) for one in data if name in one.get("paired", {})]
    for row, pair in pairs:
        if pair["exceeds"]:
            is_better = (pair["value"] < 0) == (direction == "low")
            groups["better" if is_better else "worse"].append(row)
    told = [f"{kind} in {len(rows)} ({'; '.join(rows)})" for kind, rows in groups.items() if rows]
    rest = len(pairs) - sum(map(len, groups.values()))
    told += [f"not beyond noise in {rest}"] if rest else []
    return f"{name}, of {len(pairs)} paired differences: {', '.join(told)}." if pairs else ""

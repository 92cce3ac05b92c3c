"""Results as rows for files and as text for people."""

from collections.abc import Sequence
from typing import Any

import torch

from metrics.evaluation import Result, fd_floor
from metrics.extractors.weights import is_random
from metrics.jackknife import Difference, paired_difference
from metrics.judge import Judge, Verdict
from metrics.table import cell, to_text

FEW = 5000  # images, below which the bias of FD and IS is larger than most differences


def to_row(by: Judge, verdict: Verdict) -> dict[str, Any]:
    """A verdict as one flat row: every column with ``<column>_se``, and what it was made with."""
    result = verdict.result
    row: dict[str, Any] = {"protocol": result.protocol, "n": result.n}
    row |= result.values
    row |= {f"{name}_se": error for name, error in result.errors.items()}
    statistics = {} if by.reference is None else by.reference.statistics
    return row | {
        "reference": by.reference and by.reference.name,
        "reference_sha256": by.reference and by.reference.sha256,
        "reference_n": next((one.n for one in statistics.values()), None),
        "real": by.real and str(by.real.path),
        "real_n": verdict.real_n,
        "extractors": {name: one.sha256 for name, one in by.how.extractors.items()},
        "extractor_precision": by.precision,
        "groups": by.groups,
        "replicates": {name: values for name, values in result.replicates.items() if values},
        **_floor(by, verdict),
    }


def text(by: Judge, row: dict[str, Any], result: Result) -> str:
    """What the numbers are, what their reader must know, and a table of them."""
    lines = [
        {"metric": name, "value": value, "standard error": row[f"{name}_se"]}
        for name, value in result.values.items()
        if value is not None
    ]
    return f"{notes(by, row, result)}\n\n{to_text(lines)}"


def notes(by: Judge, row: dict[str, Any], result: Result) -> str:
    """What was measured against what, and how far the numbers may be trusted."""
    against = row["reference"] or row["real"]
    head = f"{row['images']}: {row['n']} images against {against}"
    return "\n".join(
        [head, f"protocol {row['protocol']}: {by.protocol.source}", *_notes(by, row, result)]
    )


def differences(a: Result, b: Result) -> dict[str, Difference]:
    """a - b of every column that has replicates on both sides; same seeds, same groups."""
    found = {}
    for name in a.values:
        x, y = a.values[name], b.values.get(name)
        pairs = a.replicates.get(name, []), b.replicates.get(name, [])
        one = None if x is None or y is None else paired_difference(x, pairs[0], y, pairs[1])
        if one is not None:
            found[name] = one
    return found


def paired_text(rows: Sequence[dict[str, Any]], found: dict[str, Difference]) -> str:
    """Two runs side by side, their differences, and which of these exceed noise."""
    first, second = (row["images"] for row in rows)
    lines: list[dict[str, Any]] = []
    for name, one in found.items():
        line: dict[str, Any] = {"metric": name}
        line |= {row["images"]: (row[name], row[f"{name}_se"]) for row in rows}
        line |= {"difference": (one.value, one.error), "beyond noise": _yes(one.exceeds)}
        lines.append(line)
    if not lines:
        return "no difference can be given: error bars need two groups or more\n"
    head = (
        f"{first} minus {second}, the same seeds in pairs; ± standard error; beyond noise: the "
        "95 % interval of the difference does not hold 0"
    )
    return f"{head}\n\n{to_text(lines)}"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _notes(by: Judge, row: dict[str, Any], result: Result) -> list[str]:
    said = list(result.notes)
    made_for = by.reference and by.reference.protocol
    if by.reference is not None and made_for not in (None, by.protocol.name):
        said.append(f"the reference {by.reference.name} is made for protocol {made_for}")
    if any(is_random(sha256) for sha256 in row["extractors"].values()):
        said.append("RANDOM WEIGHTS: these numbers measure nothing and must not be reported")
    if by.precision != "fp32":
        said.append(f"extractors computed in {by.precision}, references in fp32: see "
                    "docs/performance.md")  # fmt: skip
    if row.get("run", {}).get("complete") is False:
        said.append(f"the run is not complete: it is to make {row['run'].get('images')} images")
    if row.get("skipped"):
        said.append(f"{row['skipped']} images could not be read and were left out")
    if "fd_floor" in row:
        floor = cell((row["fd_floor"], row["fd_floor_std"]))
        drawn = "equally often from each class" if row["fd_floor_balanced"] else "at random"
        said.append(
            f"FD floor {floor}: mean and spread of what as many real images get, drawn {drawn}"
        )
    if result.values.get("is_std") is not None:
        said.append("is_std is the spread over the parts of the Inception score, not an error")
    if any(row[f"{name}_se"] is not None for name in result.values):
        said.append(f"standard errors by leaving out each of {row['groups']} groups of seeds")
    if row["n"] < FEW:
        said.append(f"FD falls and IS rises with N: compare these only with {row['n']} images")
    dims = {one.columns[0]: _dim(by, one.extractor) for one in by.protocol.measures
            if one.kind == "fd" and one.field == "features"}  # fmt: skip
    for name, dim in dims.items():
        for n, what in ((row["n"], "images"), (row["reference_n"], "real images")):
            if dim is not None and n is not None and n <= dim:
                said.append(
                    f"{name}: the covariance of {n} {what} in {dim} dimensions is "
                    "rank-deficient, FD is far above its value at large N"
                )
    if row.get("precision") is not None and by.protocol.note:
        said.append(by.protocol.note)
    return said


def _dim(by: Judge, extractor: str) -> int | None:
    found = by.how.extractors.get(extractor)
    return None if found is None else found.feature_dim


def _floor(by: Judge, verdict: Verdict) -> dict[str, float | bool | None]:
    """The FD of as many real images, where the reference keeps their features."""
    if by.reference is None or by.protocol.name != "digits":
        return {}
    statistics, known, n = by.reference.statistics["digits"], verdict.labels, verdict.result.n
    counts = torch.empty(0) if known is None else known.bincount()
    balanced = len(counts) > 0 and bool(counts.max() - counts.min() <= 1) and n >= 2 * len(counts)
    if statistics.features is None or (balanced and by.reference.labels is None):
        return {}
    floor = fd_floor(statistics, n, by.reference.labels if balanced else None)
    return {
        "fd_floor": floor.value, "fd_floor_std": floor.error, "fd_floor_balanced": balanced
    }  # fmt: skip

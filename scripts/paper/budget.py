"""Which rows to measure first, and when to stop: the most valuable first, cheap before dear."""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from metrics.report import to_text
from scripts.paper.config import Experiment, chosen_rows, images_of, page_name
from scripts.paper.plan import cost_of, options_of_row, span, speeds
from scripts.paper.rows import Planned

MEASURING = 4.0  # seconds that a row takes beside sampling


class Budget:
    """Hours for the rows that are still to be measured; the first process decides.

    Estimates are corrected by what the rows of the same network took before.

    Parameters
    ----------
    hours
        Time; None: no limit.
    processes
        Processes that share a row.
    """

    def __init__(self, hours: float | None, processes: int):
        self.seconds = None if hours is None else 3600 * hours
        self.processes = processes
        self.start = time.monotonic()
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.left: list[Planned] = []

    def ordered(self, rows: Sequence[Planned]) -> list[Planned]:
        """Return rows by value and cost: the rows that the paper has in Table 2, its others,
        other tables, then figures."""
        return sorted(rows, key=lambda one: (_rank(one), self.estimate(one)))

    def estimate(self, one: Planned) -> float:
        """Return the seconds that a row will take; 0 for networks of unknown speed."""
        sampling = (cost_of(one.options).seconds or 0.0) / self.processes
        estimated, taken = self.spent[str(one.options["preset"])]
        return sampling * (taken / estimated if estimated else 1.0) + MEASURING

    def allows(self, one: Planned) -> bool:
        """Return whether a row ends within the budget; else it counts as left."""
        if self.seconds is None:
            return True
        if time.monotonic() - self.start + self.estimate(one) <= self.seconds:
            return True
        self.left.append(one)
        return False

    def took(self, one: Planned, seconds: float) -> None:
        """Learn from a row that was measured."""
        sums = self.spent[str(one.options["preset"])]
        sums[0] += (cost_of(one.options).seconds or 0.0) / self.processes
        sums[1] += max(0.0, seconds - MEASURING)

    def report(self) -> str:
        """Say what is left; "" where nothing is."""
        if not self.left:
            return ""
        pages: dict[str, list[str]] = defaultdict(list)
        for one in self.left:
            pages[one.page].append(one.row.name)
        total = span(sum(map(self.estimate, self.left)))
        lines = [f"  {page}: {'; '.join(names)}" for page, names in pages.items()]
        return "\n".join([
            f"{len(self.left)} rows are left, about {total}; the same command goes on:", *lines
        ])  # fmt: skip


def _rank(one: Planned) -> int:
    if one.table == "table2":
        return 0 if one.row.published else 1
    return 2 if one.table.startswith("table") else 3


def costs(experiments: Sequence[Experiment]) -> str:
    """Return what measuring costs by page and in all by scale; equal rows count once."""
    seen: set[str] = set()
    lines: list[dict[str, Any]] = []
    totals: dict[str, float] = defaultdict(float)
    for config, request in experiments:
        rows, images, seconds = 0, 0, 0.0
        for row in chosen_rows(config, request.rows):
            options = options_of_row(config, row, request)
            if (key := json.dumps(options, sort_keys=True)) not in seen:
                rows, images = rows + 1, images + images_of(config, row, request)
                seconds += cost_of(options).seconds or 0.0
            seen.add(key)
        totals[request.scale] += seconds
        lines.append({"page": page_name(config, request), "rows": rows, "images": images,
                      "time": span(seconds)})  # fmt: skip
    sums = "; ".join(f"{scale} {span(seconds)}" for scale, seconds in totals.items())
    return (
        f"{to_text(lines)}\nTime: sampling alone, of one process; {speeds()}. In all: {sums}. "
        "Rows that are equal in several tables count once; finished rows take none."
    )

"""Rows of a study: computed once, kept in a folder, gathered in a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erk.io.atomic import write_file
from erk.io.cache import cached, cached_path, save_json
from erk.method.settings import Settings
from erk.runtime.provenance import provenance
from metrics import evaluation
from metrics.report import to_markdown
from scripts.studies.data import Data

VERSION = 1
"""Version of the studies' numbers: raise it when they change."""
RESULTS = Path(__file__).resolve().parents[2] / "results"
ORIGIN = ("key", "made_by")  # of a row: left out of tables
Row = dict[str, Any]


def key_of(data: Data, settings: Settings, *seeds: range) -> list[Any]:
    """Return all that a row's numbers depend on, as JSON: settings, networks, seeds."""
    spans = [[one.start, one.stop] for one in seeds]
    return [data.name, settings.identity(), data.networks, spans, evaluation.VERSION]


class Table:
    """The rows of a study in `path`.json, and their text in `path`.md.

    Rows of earlier runs stay in the table; a row with the same `wanted` is replaced.
    """

    def __init__(self, path: Path, text: Callable[[Sequence[Row]], str], **facts: Any) -> None:
        self.path, self.text, self.facts = path.with_suffix(".json"), text, facts
        self.rows: list[Row] = (
            json.loads(self.path.read_text("utf-8"))["rows"] if self.path.exists() else []
        )

    def add(self, wanted: Row, key: Any, compute: Callable[[], Row]) -> None:
        """Compute a row unless it is kept, and write the table."""
        folder = self.path.parent / "rows"
        name = cached_path(key, VERSION, folder).stem[:24]

        def row() -> Row:
            return wanted | compute() | {"key": name, "made_by": provenance()}

        value = cached(key, VERSION, row, folder)
        index = next((i for i, r in enumerate(self.rows) if wanted.items() <= r.items()), None)
        if index is None:
            self.rows.append(value)
        else:
            self.rows[index] = value
        write_file(self.path, save_json({"rows": self.rows, **self.facts}))
        write_file(self.path.with_suffix(".md"), self.text(self.rows).encode())


def record(title: str, said: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a page: a heading, what is measured by which command, the table."""
    return f"# {title}\n\n{said}\n\n{shown(rows)}"


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table; lists are (value, standard error)."""
    return to_markdown([
        {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k not in ORIGIN}
        for row in rows
    ])  # fmt: skip

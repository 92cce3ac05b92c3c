"""Protocols: which metrics are computed, by which network, exactly as which tool computes them.

Numbers of different protocols are not comparable, whatever their names, so every evaluation
carries the name of its protocol. The table is configs/protocols.yaml.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from erk.io.config import read_config
from erk.io.resources import data
from erk.method.arguments import require
from metrics.measures import Measure


@dataclass(frozen=True)
class Protocol:
    """Named measures."""

    name: str
    measures: tuple[Measure, ...]
    source: str  # whose definition it is
    note: str = ""  # what a reader of its precision and recall must know
    floor: str | None = None  # the statistics whose FD floor is reported

    @property
    def columns(self) -> list[str]:
        """Names of all values, in order."""
        return [column for measure in self.measures for column in measure.columns]

    @property
    def needs_labels(self) -> bool:
        """Whether a measure is of the classes asked for; the floor takes them where they fit."""
        return any(one.rule.needs_labels for one in self.measures)

    def only(self, columns: str | Sequence[str] | None) -> "Protocol":
        """Keep the measures that fill the named columns; None: all. Raises ValueError.

        ``columns``: their names, or one text of them, "fid,is".
        """
        if columns is None:
            return self
        if isinstance(columns, str):
            columns = [name.strip() for name in columns.split(",")]
        require(isinstance(columns, Sequence), "metrics", "a list of names, or fid,is", columns)
        unknown = [column for column in columns if column not in self.columns]
        if unknown or not columns:
            raise ValueError(
                f"protocol {self.name} does not measure {', '.join(unknown) or 'nothing'}: "
                f"choose among {', '.join(self.columns)}"
            )
        chosen = tuple(m for m in self.measures if {*m.columns} & {*columns})
        has_floor = any(one.kind == "fd" and one.statistics == self.floor for one in chosen)
        return replace(self, measures=chosen, floor=self.floor if has_floor else None)

    def outputs(self, real: bool = False) -> dict[str, list[str]]:
        """Return extractor -> the outputs needed, features always; ``real``: of real images."""
        outputs: dict[str, list[str]] = {}
        for measure in self.measures:
            if not real or measure.rule.needs_real_features:
                names = outputs.setdefault(measure.extractor, ["features"])
                names.extend({measure.output} - {*names})
        return outputs

    def statistics(self) -> list[str]:
        """Return the names of the statistics that a reference must hold."""
        return sorted({one.statistics for one in self.measures if one.rule.needs_statistics})


@dataclass(frozen=True)
class ProtocolRow:
    """One row of configs/protocols.yaml."""

    source: str
    measures: tuple[Measure, ...]
    note: str = ""
    floor: str | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


@functools.cache
def known_protocols() -> dict[str, Protocol]:
    """Return the protocols by name, in the order of configs/protocols.yaml."""
    rows = read_config(data("configs") / "protocols.yaml", dict[str, ProtocolRow])
    return {
        name: Protocol(name, row.measures, row.source, row.note, row.floor)
        for name, row in rows.items()
    }


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name. Raises ValueError for an unknown one."""
    protocols = known_protocols()
    if name not in [*protocols]:
        raise ValueError(f"there is no protocol {name!r}: choose one of {', '.join(protocols)}")
    return protocols[name]


def default_protocol(statistics: Iterable[str]) -> str | None:
    """Name the smallest protocol that needs exactly these statistics; None: there is none.

    Else the smallest that needs them with those of its precision and recall.
    """
    names, known = set(statistics), sorted(known_protocols().values(), key=_size)
    exact = [one.name for one in known if {*one.statistics()} == names]
    fitting = [one.name for one in known if {*one.statistics(), *one.outputs(real=True)} == names]
    return next(iter([*exact, *fitting]), None)


def _size(protocol: Protocol) -> int:
    return len(protocol.measures)

"""Protocols: which numbers are measured, by which network, exactly as whose tools.

Numbers of different protocols are not comparable, whatever their names, so every result carries
the name of its protocol. Facts: the papers and codes named beside each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One computation and the columns it fills."""

    kind: str  # "fd", "fd_infinity", "is", "neighbours", "kid" or "accuracy"
    extractor: str
    columns: tuple[str, ...]
    options: Mapping[str, Any] = {}

    @property
    def needs_real_features(self) -> bool:
        """Whether features of real images are needed, not only their statistics."""
        return self.kind in ("neighbours", "kid")

    @property
    def field(self) -> str:
        """The extractor's output that is measured."""
        return self.options.get(
            "field", "logits" if self.kind in ("is", "accuracy") else "features"
        )

    @property
    def statistics(self) -> str:
        """The name of the statistics in a reference."""
        return self.extractor if self.field != "spatial" else f"{self.extractor}-spatial"


class Protocol(NamedTuple):
    """Named measures."""

    name: str
    measures: tuple[Measure, ...]
    source: str  # whose definition it is
    note: str = ""  # what a reader of its numbers must know

    @property
    def columns(self) -> list[str]:
        return [column for measure in self.measures for column in measure.columns]

    def only(self, columns: Sequence[str] | None) -> "Protocol":
        """The measures that fill the named columns; None: all. Raises ValueError."""
        if columns is None:
            return self
        unknown = [column for column in columns if column not in self.columns]
        if unknown or not columns:
            raise ValueError(
                f"protocol {self.name} does not measure {', '.join(unknown) or 'nothing'}: "
                f"choose among {', '.join(self.columns)}"
            )
        chosen = tuple(m for m in self.measures if {*m.columns} & {*columns})
        return self._replace(measures=chosen)

    def wanted(self, real: bool = False) -> dict[str, list[str]]:
        """Extractor -> the outputs that are needed, features always; ``real``: of real images."""
        found: dict[str, list[str]] = {}
        for measure in self.measures:
            if not real or measure.needs_real_features:
                fields = found.setdefault(measure.extractor, ["features"])
                fields.extend({measure.field} - {*fields})
        return found


FID = Measure("fd", "inception", ("fid",))
FD_DINOV2 = Measure("fd", "dinov2", ("fd_dinov2",))
IS = Measure("is", "inception", ("is", "is_std"), {"splits": 10})
PR = ("precision", "recall")
PRDC = (*PR, "density", "coverage")

EXCHANGED = (
    "The published precision and recall columns are very probably exchanged (torch-fidelity before "
    "0.4 took its first input as the real images); here both follow their definition."
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "erk-paper",
            (FID, FD_DINOV2, Measure("neighbours", "vgg16", PR, {"k": 3}), IS),
            "ERK-Guid: EDM2's FID and FD-DINOv2; torch-fidelity's precision, recall and IS",
            EXCHANGED,
        ),
        Protocol("edm", (FID,), "Karras et al. 2022, fid.py"),
        Protocol("edm2", (FID, FD_DINOV2), "Karras et al. 2024, calculate_metrics.py"),
        Protocol(
            "adm",
            (
                FID,
                Measure("fd", "inception", ("sfid",), {"field": "spatial"}),
                Measure("is", "inception", ("is", "is_std"), {"split_size": 5000}),
                Measure("neighbours", "inception", PR, {"k": 3}),
            ),
            "Dhariwal and Nichol 2021, evaluator.py; squared distances in float32, not float16",
        ),
        Protocol(
            "torch-fidelity",
            (FID, IS, Measure("kid", "inception", ("kid", "kid_std")),
             Measure("neighbours", "vgg16", PR, {"k": 3})),
            "torch-fidelity 0.4",
        ),
        Protocol(
            "dgm-eval",
            (
                Measure("fd", "dinov2-pil", ("fd_dinov2",)),
                Measure("fd_infinity", "dinov2-pil", ("fd_infinity",)),
                Measure(
                    "neighbours", "dinov2-pil", PRDC, {"k": 5, "strict": True, "reduced": 10_000}
                ),
            ),
            "Stein et al. 2023, dgm-eval",
        ),
        Protocol(
            "kynkaat-dinov2",
            (FD_DINOV2, Measure("neighbours", "dinov2", PR, {"k": 3})),
            "Kynkäänniemi et al. 2024, guidance in a limited interval",
        ),
        Protocol(
            "digits",
            (
                Measure("fd", "digits", ("fd",)),
                Measure("neighbours", "digits", PR, {"k": 3}),
                Measure("is", "digits", ("is", "is_std"), {"splits": 10}),
                Measure("accuracy", "digits", ("accuracy",)),
            ),
            "this project's embedded default: 64 features of a classifier of 8x8 digits",
        ),
    )
}  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """A protocol by name. Raises ValueError."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]

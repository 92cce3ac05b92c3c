"""Presets: the rows of configs/models.yaml."""

import difflib
import functools
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from erk.io.config import read_config
from erk.io.resources import data


class Preset(NamedTuple):
    """A network, an optional guiding network, and the metric published for them."""

    name: str
    net: str  # path or URL
    gnet: str | None
    guidance: float
    metric: str | None  # e.g. "FID 2.56"
    licence: str


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Checked):
    """A preset as configs/models.yaml has it."""

    net: str
    gnet: str | None = None
    guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    fid: float | None = None
    fd_dinov2: float | None = None

    @model_validator(mode="after")
    def _guidance_has_a_guide(self) -> "Row":
        if self.guidance != 1 and self.gnet is None:
            raise ValueError("guidance other than 1 needs a gnet")
        return self

    @property
    def metric(self) -> str | None:
        """The published metric, for display."""
        if self.fd_dinov2 is not None:
            return f"FD-DINOv2 {self.fd_dinov2:.2f}"
        return None if self.fid is None else f"FID {self.fid:.2f}"


class Group(_Checked):
    """Presets whose files share a folder and a licence."""

    root: str
    licence: str
    presets: dict[str, Row]

    def path(self, file: str) -> str:
        """Return the URL of a file, or its path if it is shipped with the code."""
        return f"{self.root}/{file}" if "://" in self.root else str(data(self.root) / file)


@functools.cache
def presets() -> dict[str, Preset]:
    """Return all presets by name, in the order of the file."""
    groups = read_config(data("configs") / "models.yaml", dict[str, Group]).values()
    return {
        name: Preset(
            name,
            group.path(row.net),
            None if row.gnet is None else group.path(row.gnet),
            row.guidance,
            row.metric,
            group.licence,
        )
        for group in groups
        for name, row in group.presets.items()
    }


def short_names() -> dict[str, str]:
    """Map short names to presets: a name that ends in '-fid' also works without that ending."""
    return {name.removesuffix("-fid"): name for name in presets() if name.endswith("-fid")}


def find_preset(name: str) -> Preset:
    """Return a preset by its name or short name. Raises ValueError that suggests similar names."""
    known = presets()
    full = short_names().get(name, name)
    if full in known:
        return known[full]
    if name == "toy":
        raise ValueError(
            "the preset 'toy' is an exact 2-D mixture, which only erk calibrate knows: choose a "
            "network of erk presets."
        )
    near = difflib.get_close_matches(name, [*known, *short_names()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "erk presets lists all."
    raise ValueError(f"unknown preset '{name}'; {hint}")


def is_embedded(name: str) -> bool:
    """Return whether a preset's files are shipped with the code. Raises ValueError if unknown."""
    return "://" not in find_preset(name).net


def describe() -> list[str]:
    """Describe each preset in a line: name, networks, guidance weight, published metric."""
    short = {full: name for name, full in short_names().items()}
    lines = []
    for preset in presets().values():
        parts = [f"{preset.name:35}", f"net={preset.net.rpartition('/')[2]}"]
        if preset.gnet:
            parts += [f"gnet={preset.gnet.rpartition('/')[2]}", f"guidance={preset.guidance:g}"]
        if preset.metric:
            parts.append(f"published: {preset.metric}")
        if preset.name in short:
            parts.append(f"short: {short[preset.name]}")
        lines.append("  ".join(parts))
    return lines

"""Presets: rows of configs/models.yaml."""

import difflib
import functools
from typing import Any, NamedTuple

import yaml

from erk.io.resources import data


class Preset(NamedTuple):
    """A network, its guiding network if any, and the metric published for the pair."""

    name: str
    net: str  # path or URL
    gnet: str | None
    guidance: float
    metric: str | None  # e.g. "FID 2.56"
    licence: str


@functools.cache
def presets() -> dict[str, Preset]:
    """All presets by name, in the order of the file."""
    groups = yaml.safe_load((data("configs") / "models.yaml").read_text("utf-8"))
    return {
        name: _preset(name, row, group)
        for group in groups.values()
        for name, row in group["presets"].items()
    }


def _preset(name: str, row: dict[str, Any], group: dict[str, Any]) -> Preset:
    def place(file: str) -> str:
        root = group["root"]
        return f"{root}/{file}" if "://" in root else str(data(root) / file)

    metric = None
    for key, label in (("fid", "FID"), ("fd_dinov2", "FD-DINOv2")):
        if key in row:
            metric = f"{label} {row[key]:.2f}"
    gnet = place(row["gnet"]) if "gnet" in row else None
    return Preset(
        name, place(row["net"]), gnet, row.get("guidance", 1.0), metric, group["licence"]
    )


def short_names() -> dict[str, str]:
    """Short name -> preset: a name that ends in '-fid' also goes without that ending."""
    return {name.removesuffix("-fid"): name for name in presets() if name.endswith("-fid")}


def find_preset(name: str) -> Preset:
    """The preset of that name or short name; ValueError suggests the nearest ones."""
    known = presets()
    full = short_names().get(name, name)
    if full in known:
        return known[full]
    near = difflib.get_close_matches(name, [*known, *short_names()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see generate.py --list-presets."
    raise ValueError(f"unknown preset '{name}'; {hint}")


def describe() -> list[str]:
    """One line per preset: name, network, guiding network and weight, published metric."""
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

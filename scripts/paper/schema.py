"""What a file of configs/ may say, as data, and the reader that holds a file to it.

A type is a Python type (float: any finite number), a tuple (one of these texts), a list of one
type (a list of such values), or a mapping: name -> type, where ``str`` in place of a name stands
for any name.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

MOST_BYTES = 1 << 20  # of a file: reading YAML takes a second for so many
MOST_DIGITS = 40  # of a number
SCALES = ("paper", "embedded")
SETTINGS: dict[str, Any] = {
    "preset": str, "net": str, "gnet": str, "labels": str,
    "solver": ("euler", "heun", "dpm2", "ipndm", "ipndm_v", "deis", "dpmpp", "unipc"),
    "solver_option": [str],
    "schedule": ("edm", "polynomial", "logsnr", "time_uniform", "discrete"),
    "steps": int, "sigma_min": float, "sigma_max": float, "rho": float, "afs": bool,
    "denoise_to_zero": bool, "guidance": float, "guidance_interval": str, "w_stiff": float,
    "w_con": float, "erk_scale": ("quadratic", "abs", "alpha"), "erk_proj": bool,
    "adaptive_tau": float, "pc_snr": float, "pc_deterministic": bool, "S_churn": float,
    "S_min": float, "S_max": float, "S_noise": float,
}  # fmt: skip
"""What a row may set: generate.py's options of these names."""
_GROUPED = {"group_by": [tuple(SETTINGS)], "refs": {str: str}}
_SWEPT = {"show": ("over_w_con", "scalings"), "metrics": dict.fromkeys(SCALES, [str])}
OPTIONS: dict[str, dict[str, Any]] = {
    "sampled": _GROUPED,
    "settings": {"weights_of": str},
    "toy": {},
    "timing": {"what": ("seconds", "memory"), "batch": int},
    "estimator": {"show": ("estimates", "convergence"), "iterations": int},
    "sweep": _GROUPED | _SWEPT,
    "grid": {"columns": int},
    "text-to-image": {"repo": str, "steps": int, "guidance": float, "prompts": [str]},
}
"""Kind of a table or figure -> the options of the module that makes it."""
OPTIONAL = ("group_by", "refs", "weights_of")
"""Options that may be missing; a kind cannot do without its others."""
KINDS = tuple(OPTIONS)
NEEDED = ("title", "kind", "paper")
FIELDS = (*NEEDED, "rows", "columns", "best", "num", "seeds", "ref", "presets", "settings",
          "embedded", "options", "notes")  # fmt: skip


def file_type(kind: str, columns: Sequence[str]) -> dict[str, Any]:
    """The type of a whole file, from what it says of its kind and its columns.

    A kind that measures nothing, "settings", publishes texts, all others numbers; beside its
    columns a row may publish its number of evaluations (nfe).
    """
    printed = dict.fromkeys((*columns, "nfe"), str if kind == "settings" else float)
    row = {"name": str, "settings": SETTINGS, "published": printed, "as_printed": SETTINGS,
           "against": str}  # fmt: skip
    types: tuple[Any, ...] = (
        str, KINDS, str, [row], [str], dict.fromkeys(columns, ("low", "high")),
        dict.fromkeys(SCALES, int), dict.fromkeys(SCALES, int), dict.fromkeys(SCALES, str),
        {str: str}, SETTINGS, SETTINGS, OPTIONS[kind], [str],
    )  # fmt: skip
    return dict(zip(FIELDS, types, strict=True))


def read(path: Path) -> dict[str, Any]:
    """What the file says, by FIELDS. Raises ValueError with the file and the line."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}:1: larger than any table ({MOST_BYTES} bytes)")
    try:
        top = yaml.compose(path.read_text("utf-8"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:1: not UTF-8 text ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}:1: not readable YAML (nested too deeply)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", error)
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: not readable YAML ({reason})") from None
    reader = Reader(path)
    nodes = reader.items(top, FIELDS, NEEDED)
    kind = reader.value(nodes["kind"], KINDS, "kind")
    columns = reader.value(nodes["columns"], [str], "columns") if "columns" in nodes else []
    types = file_type(kind, columns)
    if "options" not in nodes and any(_needed("options", OPTIONS[kind])):
        reader.fail(top, "'options' is missing")
    found = {name: reader.value(node, types[name], name) for name, node in nodes.items()}
    reader.check_rows(nodes.get("rows"))
    return found


class Reader:
    """YAML nodes into values of a given type; it knows the file for its errors."""

    def __init__(self, path: Path):
        self.path = path

    def fail(self, node: yaml.Node | None, message: str) -> NoReturn:
        line = 1 if node is None else node.start_mark.line + 1
        raise ValueError(f"{self.path}:{line}: {message}")

    def items(
        self,
        node: yaml.Node | None,
        known: Collection[str] | None = None,
        needed: Iterable[str] = (),
        field: str = "",
    ) -> dict[str, yaml.Node]:
        """Names and nodes of a mapping: each name once and one of ``known``, all ``needed``."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, "a mapping of names to values must stand here")
        found: dict[str, yaml.Node] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fail(key, "a name must stand here, not a list or a mapping")
            if key.value in found:
                self.fail(key, f"'{key.value}' is there twice")
            if known is not None and key.value not in known:
                within = f" in '{field}'" if field else ""
                self.fail(key, f"unknown key '{key.value}'{within}: {hint(key.value, known)}")
            found[key.value] = child
        for name in needed:
            if name not in found:
                self.fail(node, f"'{name}' is missing")
        return found

    def value(self, node: yaml.Node, kind: Any, field: str) -> Any:
        """A node as a value of type ``kind``; ``field``: its name for people."""
        if isinstance(kind, Mapping):
            every = kind.get(str)
            items = self.items(node, None if every else kind, _needed(field, kind), field)
            way = "" if field == "rows" else f"{field}."
            return {key: self.value(child, every or kind[key], way + key)
                    for key, child in items.items()}  # fmt: skip
        if isinstance(kind, list):
            if not isinstance(node, yaml.SequenceNode):
                self.fail(node, f"'{field}' must be a list")
            return [self.value(child, kind[0], field) for child in node.value]
        found = self._scalar(node, field)
        if isinstance(kind, tuple):
            if found not in kind:
                self.fail(node, f"'{field}' must be one of {', '.join(kind)}, not {found!r}")
        elif kind is float:
            if type(found) not in (int, float) or not math.isfinite(found):
                self.fail(node, f"'{field}' must be a number, not {found!r}")
        elif type(found) is not kind:
            self.fail(node, f"'{field}' must be of type {kind.__name__}, not {found!r}")
        return found

    def _scalar(self, node: yaml.Node, field: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, f"'{field}' must be one value, not a list or a mapping")
        if len(node.value) > MOST_DIGITS and not node.tag.endswith(":str"):
            self.fail(node, f"'{field}' is not readable (too long)")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except Exception as error:  # another tag; a date that is none; an integer without digits
            reason = getattr(error, "problem", None) or error
            self.fail(node, f"'{field}' is not readable ({reason})")

    def check_rows(self, rows: yaml.Node | None) -> None:
        """Row names are unique, and ``against`` names another row."""
        fields = [self.items(row) for row in rows.value] if rows else []
        names: set[str] = set()
        for row in fields:
            if row["name"].value in names:
                self.fail(row["name"], f"the row '{row['name'].value}' is there twice")
            names.add(row["name"].value)
        for row in fields:
            other = row.get("against")
            if other is None:
                continue
            if other.value not in names:
                self.fail(other, f"there is no row '{other.value}'")
            if other.value == row["name"].value:
                self.fail(other, f"the row '{other.value}' cannot stand against itself")


def hint(name: Any, known: Iterable[str]) -> str:
    """For an error about a name: the nearest that are known, else all."""
    near = difflib.get_close_matches(str(name), list(known), n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def _needed(field: str, kind: Mapping[str, Any]) -> Iterable[str]:
    """The names that a mapping must have: a row its name; options all but the grouping's."""
    if field == "rows":
        return ("name",)
    return [name for name in kind if name not in OPTIONAL] if field == "options" else ()

"""Experiments as data: one file of configs/ per table or figure, read strictly.

A mistake in a file is a ValueError that names the file and the line.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs"
SCALES = ("paper", "embedded")
KINDS = ("sampled", "settings", "toy", "timing", "estimator", "sweep", "grid", "text-to-image")
SETTINGS = (
    "preset", "net", "gnet", "labels", "solver", "solver_option", "schedule", "steps", "sigma_min",
    "sigma_max", "rho", "afs", "denoise_to_zero", "guidance", "guidance_interval", "w_stiff",
    "w_con", "erk_scale", "erk_proj", "adaptive_tau", "pc_snr", "pc_deterministic", "S_churn",
    "S_min", "S_max", "S_noise",
)  # fmt: skip
"""What a row may set: generate.py's options of these names."""
KEYS = {"settings": SETTINGS, "as_printed": SETTINGS, "embedded": SETTINGS,
        "num": SCALES, "seeds": SCALES, "ref": SCALES}  # fmt: skip
"""Field -> the keys that its mapping may hold; other mappings may hold any."""
CHOICES = {"kind": KINDS, "best": ("low", "high")}
"""Field -> what its text, or the texts of its mapping, may be."""


class Row(NamedTuple):
    """One row of a table."""

    name: str  # shown in the first column
    settings: dict[str, Any] = {}  # by the names of SETTINGS
    published: dict[str, Any] = {}  # column -> what the paper prints
    as_printed: dict[str, Any] = {}  # settings that the paper's text gives otherwise than its code
    against: str | None = None  # the row that this one is compared with, seed by seed


class Config(NamedTuple):
    """One table or figure."""

    name: str  # that of the file: table2
    title: str
    kind: str  # one of KINDS: which module makes it
    paper: str  # one line: what the paper shows, and how it was made
    rows: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()  # metrics shown, in order
    best: dict[str, str] = {}  # column -> "low" or "high": which value is bold
    num: dict[str, int] = {}  # scale -> images per row
    seeds: dict[str, int] = {}  # scale -> first seed
    ref: dict[str, str] = {}  # scale -> reference
    presets: dict[str, str] = {}  # preset at paper scale -> preset or file at embedded scale
    embedded: dict[str, Any] = {}  # settings of every row at embedded scale, over the row's own
    options: dict[str, Any] = {}  # of the module that makes it
    notes: tuple[str, ...] = ()


class Request(NamedTuple):
    """What the command line asks for; see scripts/reproduce.py."""

    scale: str = "embedded"
    num: int | None = None  # images per row; None: the config's
    rows: str | None = None  # "0,2-4"; None: all
    as_printed: bool = False
    dry_run: bool = False
    results: Path = ROOT / "results"
    rows_in: Path | None = None  # folder of finished rows; None: rows, beside the pages
    device: str = "auto"
    batch: int | None = None
    real: str | None = None  # real images, for precision and recall
    cache: str | None = None  # where features are kept
    shard: tuple[int, int] | None = None  # (index, count)
    offline: bool = False

    @property
    def rows_folder(self) -> Path:
        """Where finished rows are."""
        return self.results / "rows" if self.rows_in is None else self.rows_in


def config_names() -> list[str]:
    """Names of all experiments, files of configs/ that end in a number: tables, then figures."""
    found = (re.fullmatch(r"(\D+)(\d+).*", path.stem) for path in FOLDER.glob("*.yaml"))
    return [m[0] for m in sorted(filter(None, found), key=_place)]


def _place(name: re.Match[str]) -> tuple[bool, str, int, str]:
    return name[1] != "table", name[1], int(name[2]), name[0]


def load_config(name: str | Path) -> Config:
    """The experiment of that name, or in that .yaml file.

    Beside Config's fields a file may hold ``settings``, which every row starts from. Raises
    FileNotFoundError, or ValueError with the file and the line of an unknown or missing key, a
    wrong type or a name that is there twice.
    """
    path = Path(name) if Path(name).suffix == ".yaml" else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment '{name}': {_hint(name, config_names())}")
    try:
        top = yaml.compose(path.read_text("utf-8"), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}:{line}: not readable YAML ({error.problem})") from None
    reader = _Reader(path)
    types = get_type_hints(Config) | {"settings": dict[str, Any]}
    del types["name"]
    found = reader.fields(top, types, Config._field_defaults | {"settings": {}})
    common = found.pop("settings", {})
    rows = tuple(row._replace(settings=common | row.settings) for row in found.get("rows", ()))
    reader.check_rows(top)
    return Config(path.stem, **found | {"rows": rows})


def chosen_rows(config: Config, text: str | None) -> list[Row]:
    """The rows that ``0,2-4`` names, in the order of the table; None: all. Raises ValueError."""
    if text is None:
        return list(config.rows)
    wanted: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--rows wants numbers of rows such as 0,2-4, not '{text}'")
        wanted |= set(range(int(first), int(last or first) + 1))
    if not wanted or max(wanted) >= len(config.rows):
        raise ValueError(f"{config.name} has the rows 0 to {len(config.rows) - 1}, not '{text}'")
    return [row for index, row in enumerate(config.rows) if index in wanted]


def settings_of_row(config: Config, row: Row, scale: str, as_printed: bool) -> dict[str, Any]:
    """A row's settings by generate.py's option names, at a scale of SCALES.

    At embedded scale ``config.embedded`` overrides the row's and ``config.presets`` says what
    stands for its preset: another preset, or a network's file, which becomes ``net``. A network
    without classes takes no labels.
    """
    settings = row.settings | (row.as_printed if as_printed else {})
    if scale == "paper":
        return settings
    settings |= config.embedded
    if "preset" not in settings:
        return settings
    preset = settings.pop("preset")
    if preset not in config.presets:
        raise ValueError(f"{config.name} names nothing that stands for {preset} under presets")
    chosen = config.presets[preset]
    if "uncond" in chosen:
        settings.pop("labels", None)
    is_file = "/" in chosen
    return settings | {"net" if is_file else "preset": str(ROOT / chosen) if is_file else chosen}


def differs_as_printed(config: Config, scale: str) -> bool:
    """Whether the text of the paper gives some row other settings than its script, at a scale."""
    if "weights_of" in config.options:
        return differs_as_printed(load_config(config.options["weights_of"]), scale)
    return any(
        settings_of_row(config, row, scale, True) != settings_of_row(config, row, scale, False)
        for row in config.rows
        if row.as_printed
    )


def images_of(config: Config, request: Request) -> int:
    """Images per row, 0 where a config has none. Raises ValueError for fewer than 2."""
    num = config.num.get(request.scale, 0) if request.num is None else request.num
    if request.num is not None and num < 2:
        raise ValueError(f"--num must be at least 2, not {num}: one image cannot be measured")
    return num


def page_name(config: Config, request: Request) -> str:
    """What the files in results/ are called: NAME at embedded scale, else NAME-paper; the toy and
    tables of settings have no scale."""
    paper = "-paper" if request.scale == "paper" and config.kind not in ("toy", "settings") else ""
    return config.name + paper + ("-as-printed" if request.as_printed else "")


class _Reader:
    """YAML nodes into values of a given type; it knows the file for its errors."""

    def __init__(self, path: Path):
        self.path = path

    def fail(self, node: yaml.Node | None, message: str) -> NoReturn:
        line = 1 if node is None else node.start_mark.line + 1
        raise ValueError(f"{self.path}:{line}: {message}")

    def fields(
        self, node: yaml.Node | None, types: dict[str, Any], defaults: dict[str, Any]
    ) -> dict[str, Any]:
        """A mapping of exactly these fields; those with a default may be missing."""
        found = {}
        for key, child in self.items(node):
            if key.value not in types:
                self.fail(key, f"unknown key '{key.value}': {_hint(key.value, types)}")
            found[key.value] = self.value(child, types[key.value], key.value)
        missing = [name for name in types if name not in found and name not in defaults]
        if missing:
            self.fail(node, f"'{missing[0]}' is missing")
        return found

    def value(self, node: yaml.Node, kind: Any, field: str) -> Any:
        """A node as a value of type ``kind``."""
        origin, args = get_origin(kind), get_args(kind)
        if origin is dict:
            known = KEYS.get(field)
            for key, _ in self.items(node):
                if known is not None and key.value not in known:
                    hint = _hint(key.value, known)
                    self.fail(key, f"unknown key '{key.value}' in '{field}': {hint}")
            return {key.value: self.value(child, args[1], field) for key, child in self.items(node)}
        if origin is tuple:
            if not isinstance(node, yaml.SequenceNode):
                self.fail(node, f"'{field}' must be a list")
            return tuple(self.value(child, args[0], field) for child in node.value)
        if kind is Row:
            return Row(**self.fields(node, get_type_hints(Row), Row._field_defaults))
        found = yaml.SafeLoader("").construct_object(node, deep=True)
        wanted = [one for one in args if one is not type(None)] or [kind]
        if kind is not Any and type(found) not in wanted:
            self.fail(node, f"'{field}' must be of type {wanted[0].__name__}, not {found!r}")
        if field in CHOICES and found not in CHOICES[field]:
            self.fail(node, f"'{field}' must be one of {', '.join(CHOICES[field])}, not {found!r}")
        return found

    def items(self, node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Keys and values of a mapping; a key that is there twice is an error."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, "a mapping of names to values must stand here")
        seen = set()
        for key, child in node.value:
            if key.value in seen:
                self.fail(key, f"'{key.value}' is there twice")
            seen.add(key.value)
            yield key, child

    def check_rows(self, top: yaml.Node | None) -> None:
        """Row names are unique, and ``against`` names one of them."""
        fields = [
            {name.value: value for name, value in self.items(row)}
            for key, child in self.items(top)
            if key.value == "rows"
            for row in child.value
        ]
        names: set[str] = set()
        for row in fields:
            if row["name"].value in names:
                self.fail(row["name"], f"the row '{row['name'].value}' is there twice")
            names.add(row["name"].value)
        for row in fields:
            if "against" in row and row["against"].value not in names:
                self.fail(row["against"], f"there is no row '{row['against'].value}'")


def _hint(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"

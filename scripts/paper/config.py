"""Experiments as data: one file of configs/ per table or figure, read strictly.

A mistake in a file is a ValueError that names the file and the line.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from scripts.paper.schema import SCALES as SCALES
from scripts.paper.schema import hint, read

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs"


class Row(NamedTuple):
    """One row of a table."""

    name: str  # shown in the first column
    settings: dict[str, Any] = {}  # by the names of schema.SETTINGS
    published: dict[str, Any] = {}  # column -> what the paper prints
    as_printed: dict[str, Any] = {}  # settings that the paper's text gives otherwise than its code
    against: str | None = None  # the row that this one is compared with, seed by seed


class Config(NamedTuple):
    """One table or figure."""

    name: str  # that of the file: table2
    title: str
    kind: str  # one of schema.KINDS: which module makes it
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
    """What the command line asks for; see scripts/paper/reproduce.py."""

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
    FileNotFoundError, or ValueError with the file and the line of what scripts/paper/schema.py
    does not know: a key, a type, a name that is missing or there twice.
    """
    path = Path(name) if Path(name).suffix == ".yaml" else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment '{name}': {hint(name, config_names())}")
    found = read(path)
    common = found.pop("settings", {})
    rows = (Row(**row) for row in found.pop("rows", ()))
    found |= {key: tuple(found[key]) for key in ("columns", "notes") if key in found}
    rows = tuple(row._replace(settings=common | row.settings) for row in rows)
    return Config(path.stem, rows=rows, **found)


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

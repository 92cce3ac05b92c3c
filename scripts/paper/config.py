"""Experiments as data: one YAML file of configs/ per table or figure, checked when it is read.

A mistake in a file is a ValueError that names the file, the row and the key.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import click
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    create_model,
    model_validator,
)

from erk.calibration.calibrate import CORRECTIONS
from erk.commands import generate
from erk.io.config import hint, read_yaml, validated
from erk.method.fields import MOST_STEPS
from erk.method.guidance import SCALES as ERK_SCALES
from erk.method.schedule import SCHEDULES
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs"
PAPER = "paper"  # the scale of the files themselves
NETWORKS = ("preset", "net", "gnet", "labels")
RENAMED = ("solver_option", "pc_deterministic")  # options whose field has another name
CHOSEN = ("none", *CORRECTIONS)
CHOICES = {"solver": SOLVERS, "schedule": SCHEDULES, "erk_scale": ERK_SCALES}
CLICK_TYPES: dict[type, type] = {click.types.IntParamType: int, click.types.FloatParamType: float,
                                 click.types.BoolParamType: bool}  # fmt: skip


class Strict(BaseModel):
    """A mapping with the keys and types declared, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _type_of(option: click.Parameter) -> Any:
    """Return the type that YAML must have where the command line has this option."""
    if option.name in CHOICES:
        return Literal[tuple(CHOICES[option.name])]  # type: ignore[arg-type]
    if isinstance(option.type, click.Choice):
        return Literal[tuple(option.type.choices)]
    kinds = (known for base, known in CLICK_TYPES.items() if isinstance(option.type, base))
    kind = next(kinds, str)
    return list[kind] if option.multiple else kind  # type: ignore[valid-type]


def _row_settings() -> type[BaseModel]:
    """Return the model of what a row may set: generate's options that decide an image."""
    allowed = {*Settings.__dataclass_fields__, *NETWORKS, *RENAMED}
    options = [option for option in generate.main.params if option.name in allowed]
    fields: dict[str, Any] = {str(one.name): (_type_of(one), None) for one in options}
    return create_model("RowSettings", __base__=Strict, **fields)


def _as_given(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(exclude_unset=True)


RowSettings = _row_settings()
if TYPE_CHECKING:
    Given = dict[str, Any]
else:  # checked as RowSettings, kept as a dict of the settings that are given
    Given = Annotated[RowSettings, AfterValidator(_as_given)]


class CardSearch(Strict):
    """What `erk calibrate` is asked for, beside the networks of a row."""

    nfe: PositiveInt
    solver: Literal[tuple(SOLVERS)] | None = None  # type: ignore[valid-type]
    schedule: Literal[tuple(SCHEDULES)] | None = None  # type: ignore[valid-type]
    corrections: list[Literal[CHOSEN]] = []  # type: ignore[valid-type]


class Row(Strict):
    """One row of a table."""

    name: str  # shown in the first column
    settings: Given = {}
    published: dict[str, int | float | str] = {}  # column -> value printed in the paper
    as_printed: Given = {}  # settings that the paper's text gives otherwise than its code
    against: str | None = None  # the row that this one is compared with, seed by seed
    num: PositiveInt | None = None  # images; None: the config's
    card: CardSearch | None = None  # the sampler is that of the card of this search


class Small(Strict):
    """What a table or figure has otherwise at small scales; see scales.yaml for the rest."""

    num: PositiveInt | None = None  # images per row
    settings: Given = {}  # of every row, instead of the row's
    metrics: list[str] = []  # that a figure draws
    rows: list[Row] = []  # more rows, after the others


class Said(Strict):
    """One sentence on what a page shows, and the directions that it states."""

    text: str
    holds: dict[str, dict[str, Literal["better", "worse", "neither"]]] = {}  # row -> column -> is


class Config(Strict):
    """One table or figure, as the paper has it."""

    name: str  # of the file: table2
    title: str
    paper: str  # one line: what the paper shows, and how it was computed
    rows: list[Row] = []
    columns: list[str] = []  # metrics shown, in order
    best: dict[str, Literal["low", "high"]] = {}  # column -> which value is bold
    num: PositiveInt | None = None  # images per row
    seeds: NonNegativeInt | None = None  # first seed
    ref: str | None = None  # reference
    settings: Given = {}  # defaults of every row
    small: Small = Small()
    notes: list[str] = []
    says: dict[str, Said] = {}  # scale, or "any" for a page that is the same at all -> sentence

    @model_validator(mode="after")
    def _check(self) -> "Config":
        """Row names are unique, ``against`` names another row, values belong to columns."""
        rows = [*self.rows, *self.small.rows]
        names = [row.name for row in rows]
        _known("best", self.best, self.columns)
        for index, row in enumerate(rows):
            label = f"row '{row.name}'"
            if row.name in names[:index]:
                raise ValueError(f"{label}: name: two rows have this name; give each its own")
            if row.against == row.name:
                raise ValueError(f"{label}: against: a row cannot be compared with itself")
            if row.against is not None:
                _known(f"{label}: against", [row.against], names)
            _known(f"{label}: published", row.published, [*self.columns, "nfe"])
            for column, value in row.published.items():
                if isinstance(value, str) and not isinstance(self, SettingsTable):
                    raise ValueError(f"{label}: published.{column}: '{value}' is not a number")
        return self


def _known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: unknown name '{name}': {hint(name, known)}")


class SampledOptions(Strict):
    """Options of rows that are sampled and measured."""

    group_by: list[Literal[tuple(RowSettings.model_fields)]] = []  # type: ignore[valid-type]
    refs: dict[str, str] = {}  # preset -> reference, where rows differ in it


class SweepOptions(SampledOptions):
    """Options of a figure of sampled rows."""

    show: Literal["over_w_con", "scalings"]
    metrics: list[str]


class SettingsOptions(Strict):
    """Options of a table of settings."""

    weights_of: str | None = None  # the table whose w_stiff are shown; None: pairs of solvers


class CostOptions(Strict):
    """Options of a table of costs."""

    what: Literal["seconds", "memory"]
    batch: int


class EstimatorOptions(Strict):
    """Options of a figure about the estimates of stiffness and direction."""

    show: Literal["estimates", "convergence"]
    iterations: int


class GridOptions(Strict):
    """Options of a figure of images."""

    columns: int


class PromptOptions(Strict):
    """Options of a figure of images that prompts ask for."""

    repo: str
    steps: Annotated[int, Field(gt=0, le=MOST_STEPS)]
    guidance: float
    prompts: list[str]


class Sampled(Config):
    """A table whose rows are sampled and measured."""

    kind: Literal["sampled"]
    options: SampledOptions = SampledOptions()


class Sweep(Config):
    """A figure whose points are sampled and measured."""

    kind: Literal["sweep"]
    options: SweepOptions


class SettingsTable(Config):
    """A table without sampling: weights of a table, or pairs of the solvers."""

    kind: Literal["settings"]
    options: SettingsOptions = SettingsOptions()


class Toy(Config):
    """A table or figure of the two-dimensional toy."""

    kind: Literal["toy"]


class Cost(Config):
    """A table of seconds or bytes."""

    kind: Literal["timing"]
    options: CostOptions


class Estimator(Config):
    """A figure about the estimates of stiffness and direction."""

    kind: Literal["estimator"]
    options: EstimatorOptions


class Grid(Config):
    """A figure of images of the same seeds."""

    kind: Literal["grid"]
    options: GridOptions


class TextToImage(Config):
    """A figure of images that prompts ask for."""

    kind: Literal["text-to-image"]
    options: PromptOptions


Measured = Sampled | Sweep
AnyConfig = Sampled | Sweep | SettingsTable | Toy | Cost | Estimator | Grid | TextToImage
KINDS: dict[str, type[AnyConfig]] = {
    get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(AnyConfig)
}


class Request(NamedTuple):
    """What the command line asks for; see scripts/paper/reproduce.py."""

    scale: str = "digits"  # of scales.yaml, or paper
    num: int | None = None  # images per row; None: the config's
    rows: str | None = None  # "0,2-4"; None: all
    as_printed: bool = False
    dry_run: bool = False
    results: Path = ROOT / "results"
    rows_in: Path | None = None  # folder of finished rows; None: rows, beside the pages
    device: str = "auto"
    batch: int | None = None
    real: str | None = None  # real images, for precision and recall
    cache: str | None = None  # folder of features
    shard: tuple[int, int] | None = None  # (index, count)
    offline: bool = False

    @property
    def is_small(self) -> bool:
        """Whether networks of this repository represent the paper's."""
        return self.scale != PAPER

    @property
    def rows_folder(self) -> Path:
        """Folder of finished rows."""
        return self.results / "rows" if self.rows_in is None else self.rows_in


class Experiment(NamedTuple):
    """A table or figure at a scale, see scripts.paper.scales, and what is asked of it."""

    config: Any
    request: Request


def config_names() -> list[str]:
    """Return the names of all experiments: tables, then figures, in order of their numbers."""
    matches = (re.fullmatch(r"(\D+)(\d+).*", path.stem) for path in FOLDER.glob("*.yaml"))
    ordered = sorted(filter(None, matches), key=lambda m: (m[1] != "table", m[1], int(m[2]), m[0]))
    return [match[0] for match in ordered]


def load_config(name: str | Path) -> AnyConfig:
    """Read the experiment of that name, or a .yaml file.

    Every row starts from the file's ``settings``. Raises FileNotFoundError, or ValueError with the
    file, the row and the key of what is unknown, missing, repeated or of a wrong type.
    """
    path = Path(name) if Path(name).suffix == ".yaml" else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment '{name}': {hint(name, config_names())}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a mapping of names to values")
    if "name" in content:
        raise ValueError(f"{path}: name: unknown key; an experiment has the name of its file")
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path}: kind: unknown kind {kind!r}; {hint(kind, KINDS)}")
    config = validated(content | {"name": path.stem}, KINDS[kind], path)
    rows, more = (
        [row.model_copy(update={"settings": config.settings | row.settings}) for row in some]
        for some in (config.rows, config.small.rows)
    )
    small = config.small.model_copy(update={"rows": more})
    return config.model_copy(update={"rows": rows, "small": small})


def chosen_rows(config: Config, text: str | None) -> list[Row]:
    """Return the rows that ``0,2-4`` names, in order; None names all. Raises ValueError."""
    if text is None:
        return list(config.rows)
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--rows needs row numbers such as 0,2-4, not '{text}'")
        most = int(last or first)
        if not int(first) <= most < len(config.rows):
            raise ValueError(
                f"{config.name} has the rows 0 to {len(config.rows) - 1}, not '{text}'"
            )
        chosen |= set(range(int(first), most + 1))
    return [row for index, row in enumerate(config.rows) if index in chosen]


def images_of(config: Config, row: Row, request: Request) -> int:
    """Return the images of a row. Raises ValueError below 2, and where none are given."""
    num = row.num or config.num if request.num is None else request.num
    if num is None:
        raise ValueError(f"{config.name}: num: missing for the scale {request.scale}")
    if num < 2:
        raise ValueError(f"--num must be at least 2, not {num}: one image cannot be measured")
    return num


def has_scales(config: AnyConfig, scale: str) -> bool:
    """Return whether the page of an experiment differs between scales, this one included.

    Prompts need networks of the paper: their page is the same at all small scales.
    """
    same = (Toy, SettingsTable) if scale == PAPER else (Toy, SettingsTable, TextToImage)
    return not isinstance(config, same)


def page_name(config: AnyConfig, request: Request) -> str:
    """Return the name of the files in results/: NAME on digits, else NAME-SCALE."""
    is_plain = request.scale == Request().scale or not has_scales(config, request.scale)
    scale = "" if is_plain else f"-{request.scale}"
    return config.name + scale + ("-as-printed" if request.as_printed else "")

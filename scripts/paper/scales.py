"""Scales: tables and figures on the networks of this repository, as configs/scales.yaml says.

A config holds the paper's experiment. At a small scale its presets are exchanged, rows for
`erk="auto"` and the config's control rows are added, and every row has its number of images.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from erk.calibration.problem import count_nfe
from erk.generation.options import DEFAULTS, networks_of, settings_of
from erk.io.config import hint, read_config
from scripts.paper.config import (
    FOLDER,
    PAPER,
    AnyConfig,
    Config,
    Given,
    Grid,
    Measured,
    Request,
    Row,
    SettingsTable,
    Strict,
    Sweep,
    TextToImage,
    Toy,
    load_config,
)

T = TypeVar("T", bound=Config)
COLUMNS = {"fd": "low", "precision": "high", "recall": "high", "is": "high", "accuracy": "high",
           "distance": "low"}  # fmt: skip
"""What small scales measure, and which value is best."""
ERK_GUID = ("w_stiff", "w_con", "erk_scale", "erk_proj")
BASELINES = ("adaptive_tau", "pc_snr", "pc_deterministic")  # of Tables 10 and 11


class FewSteps(Strict):
    """More images where a network is evaluated at most ``nfe`` times per image."""

    nfe: PositiveInt
    num: PositiveInt


class Scale(Strict):
    """The networks that represent the paper's, and how they are measured."""

    label: str  # in titles
    what: str  # the subject of a sentence
    reference: str
    seeds: NonNegativeInt  # first seed
    num: PositiveInt  # images per row
    few_steps: FewSteps | None = None
    settings: Given = {}  # of every row
    networks: dict[str, str]  # released preset -> preset that represents it

    def images(self, nfe: float) -> int:
        """Return the images of a row with so many evaluations per image."""
        few = self.few_steps
        return few.num if few is not None and nfe <= few.nfe else self.num


class NoNetworkError(ValueError):
    """No network of a scale represents those of a table or figure."""


@functools.cache
def scales() -> dict[str, Scale]:
    """Return the small scales by name. Raises ValueError or OSError for a wrong file."""
    return read_config(FOLDER / "scales.yaml", dict[str, Scale])


def scales_of(text: str) -> list[str]:
    """Return the names in ``digits,mnist``. Raises ValueError for unknown ones."""
    known = [*scales(), PAPER]
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise ValueError(f"--scale: unknown name '{name}': {hint(name, known)}")
    return names


def at_scale(config: T, request: Request) -> T:
    """Return an experiment with the rows, settings and numbers of the request's scale.

    Raises NoNetworkError where no network of the scale represents those of the rows.
    """
    if request.as_printed:
        rows = [row.model_copy(update={"settings": row.settings | row.as_printed})
                for row in config.rows]  # fmt: skip
        config = config.model_copy(update={"rows": rows})
    if not request.is_small or isinstance(config, Toy | SettingsTable | TextToImage):
        return config
    scale, small = scales()[request.scale], config.small
    rows, controls = (
        [_represented(row, scale, small.settings) for row in some
         if row.settings.get("preset") in scale.networks]
        for some in (config.rows, small.rows)
    )  # fmt: skip
    if not rows:
        raise NoNetworkError(
            f"{config.name} has no row on the scale {request.scale}: configs/scales.yaml names no "
            "network that represents the paper's; choose another --scale"
        )
    update: dict[str, Any] = {"seeds": scale.seeds, "num": small.num, "ref": scale.reference}
    if isinstance(config, Measured | Grid):
        rows = [*_with_auto(rows, config), *controls]
    if isinstance(config, Measured):
        update |= {"columns": list(COLUMNS), "best": COLUMNS | config.best}
        if small.num is None:
            rows = _with_num(rows, scale)
    if isinstance(config, Sweep):
        update["options"] = config.options.model_copy(update={"metrics": small.metrics})
    return config.model_copy(update=update | {"rows": rows})


def differs_as_printed(config: AnyConfig, request: Request) -> bool:
    """Return whether the text of the paper gives a row other settings than its script."""
    if isinstance(config, SettingsTable) and config.options.weights_of is not None:
        return differs_as_printed(load_config(config.options.weights_of), request)
    both = [at_scale(config, request._replace(as_printed=one)).rows for one in (False, True)]
    return both[0] != both[1]


@functools.cache
def left_out(name: str, scale: str) -> list[str]:
    """Return the names of the rows of an experiment that no network of a scale represents."""
    return [row.name for row in load_config(name).rows
            if row.settings.get("preset") not in scales()[scale].networks]  # fmt: skip


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as all options of ``erk generate``, numbers as it reads them."""
    floats = {k: float(v) for k, v in settings.items() if type(v) is int and k != "steps"}
    return DEFAULTS | settings | floats


def _represented(row: Row, scale: Scale, changes: dict[str, Any]) -> Row:
    """Exchange the preset of a row. The guidance weight belongs to the network; one without
    classes takes no labels."""
    preset = scale.networks[row.settings["preset"]]
    settings = row.settings | scale.settings | changes | {"preset": preset}
    dropped = {"guidance"} | ({"labels"} if "uncond" in preset else set())
    kept = {name: value for name, value in settings.items() if name not in dropped}
    return row.model_copy(update={"settings": kept})


def _with_auto(rows: Sequence[Row], config: Measured | Grid) -> list[Row]:
    """Add to each group, after its last row, its plain sampler with erk="auto"."""
    names = getattr(config.options, "group_by", [])
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.settings.get(name) for name in names), []).append(row)
    after = {group[-1].name: _auto(group, isinstance(config, Grid)) for group in groups.values()
             if not any(row.settings.get("erk") == "auto" for row in group)}  # fmt: skip
    return [one for row in rows for one in (row, after.get(row.name)) if one is not None]


def _auto(group: Sequence[Row], is_grid: bool) -> Row:
    """Return the row "auto" of a group, compared with the row that the others are compared with."""
    compared = Counter(row.against for row in group if row.against)
    by_name = {row.name: row for row in group}
    base = by_name[compared.most_common(1)[0][0]] if compared else group[0]
    dropped = (*ERK_GUID, *BASELINES)
    settings = {name: value for name, value in base.settings.items() if name not in dropped}
    name, against = ("auto", None) if is_grid else (f"{base.name}, auto", base.name)
    return Row(name=name, settings=settings | {"erk": "auto"}, against=against)


def _with_num(rows: Sequence[Row], scale: Scale) -> list[Row]:
    """Give every row as many images as the row that it is compared with, which has its seeds."""
    by_name = {row.name: row for row in rows}
    bases = [by_name[row.against] if row.against else row for row in rows]
    return [row.model_copy(update={"num": scale.images(_nfe(base))})
            for row, base in zip(rows, bases, strict=True)]  # fmt: skip


def _nfe(row: Row) -> float:
    """Return the evaluations of a row's network per image."""
    options = options_of(row.settings)
    return count_nfe(settings_of(options, networks_of(options)[2]))[0]

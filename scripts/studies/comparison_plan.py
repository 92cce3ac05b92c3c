"""The plan of the comparison, fixed before any number: data, solvers, modes, evaluations, seeds."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from erk.calibration import calibrate as calibration
from erk.calibration.candidates import published
from erk.calibration.fit import USUAL
from erk.calibration.solver_error import EVALUATIONS
from erk.generation.job import computation
from erk.method.settings import Settings
from erk.method.solvers import published_schedule
from metrics import evaluation
from scripts.paper.demo import WEIGHTS
from scripts.studies.data import Data, identity, load


class Method(NamedTuple):
    """A solver with the schedule that it is published with; None: any solver."""

    name: str
    solver: str | None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that name the solver."""
        return {"solver": self.solver, "solver_options": dict(self.options)} if self.solver else {}


METHODS = (
    Method("Heun", "heun"),
    Method("DPM-Solver-2", "dpm2"),
    Method("DEIS tAB3", "deis"),
    Method("iPNDM", "ipndm"),
    Method("DPM++(2M)", "dpmpp", (("order", 2),)),
    Method("DPM++(3M)", "dpmpp", (("order", 3),)),
    Method("UniPC", "unipc", (("order", 3),)),
    Method("any solver", None),
)
CONVERGED = Method("converged", "deis", (("order", 4), ("mode", "tab")))
"""At EVALUATIONS evaluations; its FD is that of the network, without an error of the solver."""
PAPER, BEST = "the paper's weights", "card of --nfe n"
MORE = f"{BEST}, 128 seeds"
CORRECTIONS: dict[str, tuple[str, ...]] = {
    "levels": (), "card": ("auto", "stepwise"), "end to end": calibration.SEARCHED,
    BEST: calibration.SEARCHED, MORE: calibration.SEARCHED,
}  # fmt: skip
"""Mode with a calibration -> what `erk.calibrate` may fit beside the noise levels."""
UNCALIBRATED: dict[str, dict[str, Any]] = {"plain": {}, PAPER: WEIGHTS, "auto": {"erk": "auto"}}
FITS = 3
"""Version of the calibrations of the cells, calibrate.VERSION when most of them were made.

Its version 4 limits the length of corrections. The cells of `spectra` were computed again with it;
no earlier cell of the others reaches the limit (tests/studies/test_comparison.py).
"""
MODES = ("plain", PAPER, "auto", "levels", "card", "end to end", BEST, MORE)
ONLY = {PAPER: ("heun",), "auto": ("heun", "dpm2"), BEST: (None,), MORE: (None,)}
"""Mode -> the solvers that have it; `auto` leaves the others unchanged."""

DATA: dict[str, tuple[str, float | None]] = {
    "mnist": ("mnist", None), "spectra": ("spectra", None), "mnist-cfg-1.5": ("mnist-cfg", 1.5),
    "mnist-cfg-3": ("mnist-cfg", 3.0), "mnist-autog": ("mnist-autog", None),
}  # fmt: skip
"""Name -> data of scripts.studies.data, guidance (None: its preset's)."""
PLACES = {MORE: ("spectra",)}
"""Mode -> the only data that have it."""
ALL, FEW = (3, 4, 5, 6, 8, 10, 12, 16, 20), (5, 8)
NFES = {"card": FEW, "end to end": FEW}
GUIDED = (5, 8, 12, 20)
GUIDED_NFES = {"plain": GUIDED, "auto": GUIDED, "levels": (8,), "card": (8,),
               BEST: GUIDED}  # fmt: skip
"""Mode -> evaluations of the network per sample, at most; a fit costs more than its cell."""
NUM, NUM_GUIDED = 2000, 1000  # samples of a cell
FIRST, BATCH = 600_000, 100  # seeds that no other study, table or calibration uses
SEEDS = dict.fromkeys(CORRECTIONS, 32) | {MORE: 128}
"""Mode -> seeds of each of the three sets of a calibration; 32 are its default.

MORE was added after the closed form with 32 seeds was seen: few dimensions give few equations.
"""


class Cell(NamedTuple):
    """One number of evaluations of one solver in one mode."""

    data: str
    method: Method
    mode: str
    nfe: int  # at most
    num: int

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.data}, {self.method.name}, {self.mode}, NFE {self.nfe}"

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that are given, not searched."""
        return {"guidance": data_of(self.data).guidance, **self.method.settings}

    @property
    def settings(self) -> Settings:
        """The sampler of an uncalibrated mode, with the most steps that fit."""
        more: dict[str, Any] = {"guidance": data_of(self.data).guidance, **UNCALIBRATED[self.mode]}
        plain = published_sampler(self.method, self.nfe)
        assert plain is not None
        return replace(plain, **more)

    @property
    def seeds(self) -> range:
        """The seeds of the samples."""
        return range(FIRST, FIRST + self.num)

    @property
    def key(self) -> list[Any]:
        """All that the cell's numbers depend on, as JSON."""
        sampler: Any = self.mode in UNCALIBRATED and self.settings.identity()
        if self.mode in CORRECTIONS:
            sampler = [self.fixed, self.nfe, CORRECTIONS[self.mode], SEEDS[self.mode],
                       FITS]  # fmt: skip
        data = data_of(self.data)
        return ["comparison of cards", self.data, data.networks, identity(data), self.num, FIRST,
                BATCH, sampler, USUAL, EVALUATIONS, evaluation.VERSION, computation()]  # fmt: skip


@functools.cache
def data_of(name: str) -> Data:
    """Load data of the comparison by its name."""
    source, guidance = DATA[name]
    data = load(source)
    return data if guidance is None else data._replace(guidance=guidance)


def cells_of(
    data: Sequence[str] = tuple(DATA),
    solvers: Sequence[str] = (),
    nfes: Sequence[int] = (),
    num: int | None = None,
) -> list[Cell]:
    """List the cells in the order of their computation. Raises ValueError."""
    known = dict.fromkeys(method.solver or "any" for method in METHODS)
    unknown = next((name for name in solvers if name not in known), None)
    if unknown is not None:
        raise ValueError(f"--solver {unknown} is none of {', '.join(known)}.")
    chosen = [method for method in METHODS if not solvers or (method.solver or "any") in solvers]
    cells = [cell for name in data for method in chosen for cell in _cells(name, method, num)]
    if not solvers or CONVERGED.solver in solvers:
        cells += [Cell(name, CONVERGED, "plain", EVALUATIONS, num or usual_num(name))
                  for name in data]  # fmt: skip
    cells = [cell for cell in cells if not nfes or cell.nfe in nfes]
    return sorted(cells, key=lambda cell: (_stage(cell), MODES.index(cell.mode)))


def usual_num(data: str) -> int:
    """Return the samples of a cell."""
    return NUM if data_of(data).guide_model is None else NUM_GUIDED


def _cells(data: str, method: Method, num: int | None) -> Iterator[Cell]:
    guided = data_of(data).guide_model is not None
    num = num or usual_num(data)
    for mode in MODES:
        if data not in PLACES.get(mode, DATA):
            continue
        nfes = GUIDED_NFES.get(mode, ()) if guided else NFES.get(mode, ALL)
        if mode == "card" and method.solver == "heun" and not guided:
            nfes = ALL  # for the image of the README
        if method.solver in ONLY.get(mode, (method.solver or "none",)):
            room = (n for n in nfes if method.solver is None or published_sampler(method, n))
            yield from (Cell(data, method, mode, nfe, num) for nfe in room)


@functools.cache
def published_sampler(method: Method, nfe: int) -> Settings | None:
    """Return a solver on its schedule with the most steps that fit, None if it has no room."""
    schedule = published_schedule(method.solver or "")
    try:
        return published(nfe, method.settings | {"schedule": schedule, "afs": False})[0]
    except ValueError:
        return None


def _stage(cell: Cell) -> int:
    """Rank what the README's image needs, the closed form, other cells of MNIST, guided ones."""
    if cell.data == "mnist":
        needed = cell.method.solver in ("heun", None) and cell.mode not in ("levels", "end to end")
        return 0 if needed else 2
    return 1 if cell.data == "spectra" else 4 if cell.mode == "card" else 3

"""The samplers that a calibration compares: solvers with published schedules, within a budget."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from erk.calibration.problem import count_nfe, with_levels
from erk.method.settings import Settings
from erk.method.solvers import published_schedule

SOLVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("heun", {}), ("dpm2", {}), ("euler", {}), ("ipndm", {}), ("deis", {}),
    ("dpmpp", {"order": 2}), ("dpmpp", {"order": 3}), ("unipc", {"order": 3}),
)  # fmt: skip
SCHEDULES = ("polynomial", "logsnr", "time_uniform")  # all solvers take these
FEWEST = 2  # levels above 0, between which there is something to correct


def published(nfe: int, fixed: Mapping[str, Any], model: Any = None) -> list[Settings]:
    """Return the samplers of at most `nfe` evaluations, each with the most steps that fit.

    Parameters
    ----------
    nfe : int
        Evaluations of the network per sample.
    fixed : mapping
        Fields of `Settings` that are given; those that are not are searched.
    model : denoiser, optional
        Limits the noise levels, as in `Settings.sigmas`.

    Raises
    ------
    ValueError
        If no sampler takes so few evaluations.
    """
    variants = [(one, _choices(one, fixed, nfe)) for one in _variants(fixed)]
    fit = [
        replace(one, steps=steps)
        for one, choices in variants
        if (steps := next((n for n in choices if _evaluations(one, n, model) <= nfe), 0))
    ]
    if not fit:
        least: dict[Any, float] = {}
        for one, choices in variants:
            count = _evaluations(one, choices[-1], model)
            least[one.solver] = min(count, least.get(one.solver, count))
        names = ", ".join(f"{name} at least {count:g}" for name, count in least.items())
        raise ValueError(f"--nfe {nfe} is too few evaluations: {names}.")
    # an analytic first step that gains no step only adds its error
    plain = {repr(_without_afs(one)): one.steps for one in fit if not one.afs}
    return [one for one in fit if not one.afs or one.steps > plain.get(repr(_without_afs(one)), 0)]


def _without_afs(settings: Settings) -> list[Any]:
    return [solver_name(settings), settings.levels]


def solver_name(settings: Settings) -> str:
    """Name the solver with its options."""
    return f"{settings.solver} {settings.solver_options}"


def _variants(fixed: Mapping[str, Any]) -> Iterator[Settings]:
    """Yield the settings of every solver, schedule and first step that `fixed` leaves open."""
    solver: str | None = fixed.get("solver")
    options = fixed.get("solver_options")
    pairs = [pair for pair in SOLVERS if solver in (None, pair[0])]
    if options is not None or not pairs:
        pairs = [(solver or "heun", options or {})]
    for name, chosen in pairs:
        given = fixed.get("schedule")
        schedules = (given,) if given is not None else _schedules(name)
        for schedule in schedules:
            for afs in (fixed["afs"],) if "afs" in fixed else (False, True):
                more = {"solver": name, "solver_options": chosen, "afs": afs, "schedule": schedule}
                yield Settings(**{**fixed, **more})


def _schedules(solver: str) -> tuple[str, ...]:
    usual = published_schedule(solver)
    return tuple(dict.fromkeys((usual, *SCHEDULES)))


def _choices(settings: Settings, fixed: Mapping[str, Any], nfe: int) -> list[int]:
    """Return the numbers of steps that may fit, the most first; last the fewest."""
    if "steps" in fixed or not isinstance(settings.levels, str):
        return [settings.steps]
    near = (*range(nfe - 1, nfe + 2), *range(nfe // 2 - 1, nfe // 2 + 3))  # 1 or 2 per step
    return sorted({FEWEST, *(n for n in near if n >= FEWEST)}, reverse=True)


def _evaluations(settings: Settings, steps: int, model: Any) -> float:
    levels = with_levels(replace(settings, steps=steps), model)
    assert not callable(levels.solver)
    options = tuple(sorted(levels.solver_options.items()))
    return _nfe(levels.solver, options, levels.levels, levels.afs)


@functools.cache
def _nfe(
    solver: str, options: tuple[tuple[str, Any], ...], levels: tuple[float, ...], afs: bool
) -> float:
    return count_nfe(Settings(solver, levels, solver_options=dict(options), afs=afs))[0]

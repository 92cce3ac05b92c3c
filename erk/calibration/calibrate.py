"""Calibrate a correction: fit it on some seeds, measure the error before and after on others."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erk.calibration.fit import USUAL, ReferenceBatch, fit
from erk.calibration.parts import Parts
from erk.calibration.problem import (
    Draw,
    Problem,
    check_evaluations,
    check_plain,
    check_seed_lists,
    problem_for,
    with_levels,
)
from erk.calibration.solver_error import (
    EVALUATIONS,
    converged,
    ends,
    errors,
    mean_with_error,
    ratio,
    reference_path,
)
from erk.method.corrections import DIRECTIONS, Card
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings, check_names

VERSION = 1  # of the numbers of a calibration; raise it when they change
SEEDS, HELD_OUT = range(900_000, 900_032), range(910_000, 910_128)


def calibrate(
    model: Any,
    *,
    solver: str = "heun",
    steps: int = 8,
    seeds: Sequence[int] = SEEDS,
    held_out: Sequence[int] = HELD_OUT,
    guide_model: Any = None,
    directions: Sequence[str] = USUAL,
    evaluations: int = EVALUATIONS,
    batch: int = 32,
    draw: Draw | None = None,
    folder: Path | None = None,
    **settings: Any,
) -> Card:
    """Fit a correction of a solver to a denoiser; `erk.sample(..., erk=card)` applies it.

    At every step the multiples of a few directions are fitted that bring samples nearest to the
    converged solution from the same noise. Sampling with the card costs no network evaluation.

    Parameters
    ----------
    model : denoiser
        D(x, sigma, labels) with `sample_shape`; an `erk.Model` or an adapter (`erk.from_v`, ...).
    solver, steps, **settings
        Fields of `erk.Settings`; the card applies to these settings only.
    seeds, held_out : sequence of int
        Seeds to fit on, and other seeds to measure the error on.
    guide_model : denoiser, optional
        The guiding network, for guidance other than 1.
    directions : sequence of str
        Names in `erk.method.corrections.DIRECTIONS`.
    evaluations : int
        Network evaluations on a reference path.
    batch : int
        Samples per network evaluation.
    draw : callable, optional
        seeds -> unit-variance noise [B, ...] and labels; default: `erk.noise_and_labels`.
    folder : Path, optional
        Keeps reference paths, so that a stopped calibration continues. Networks are identified by
        their `sha256`.

    Returns
    -------
    Card
        The correction, the settings and networks it is for, and a report of the errors before and
        after on the held-out seeds. `erk.calibration.card.write_card` writes it to a file.

    Raises
    ------
    ValueError
        For seeds in both lists, fewer than two held-out seeds, an unknown or repeated direction,
        and settings that do not go together or that a card has no room for (ERK-Guid, another
        correction, noise, a function as the solver).
    NonFiniteError
        If a network produces NaN or infinity.
    """
    check_names(settings, "calibrate")
    problem = problem_for(
        model, Settings(solver=solver, steps=steps, **settings), guide_model, draw, batch
    )
    check_problem(problem, seeds, held_out, directions)
    evaluations = check_evaluations(evaluations)
    key = None if folder is None else [problem.key(seeds, held_out), evaluations]
    parts = Parts(folder, key, VERSION)
    return calibrate_problem(problem, seeds, held_out, directions, evaluations, parts)


def check_problem(
    problem: Problem, seeds: Sequence[int], held_out: Sequence[int], directions: Sequence[str]
) -> None:
    """Raise ValueError for a calibration that cannot give a card, before any network is used."""
    check_plain(problem.settings, "calibrate")
    problem.settings.recipe()  # refuses a solver that a card could not name
    check_seeds(seeds, held_out)
    check_directions(directions)


def calibrate_problem(
    problem: Problem,
    seeds: Sequence[int],
    held_out: Sequence[int],
    directions: Sequence[str],
    evaluations: int,
    parts: Parts,
) -> Card:
    """Fit on `seeds`, measure on `held_out`; reference paths are kept in `parts`."""
    fitted = fit(problem, [*paths(problem, seeds, "fit", evaluations, parts)], directions)
    before, after, change = [], [], None
    plain, model, guide = problem.settings, problem.model, problem.guide_model
    corrected = replace(plain, erk=fitted.correction)
    for noise, labels, path in paths(problem, held_out, "held-out", evaluations, parts):
        exact = path[len(path) - 1].to(noise.device)
        before.append(errors(plain, model, noise, labels, exact, guide))
        after.append(errors(corrected, model, noise, labels, exact, guide))
        if change is None:  # one batch is enough
            rough = converged(plain, model, noise, labels, guide, evaluations // 2)
            change = norm(rough - exact).flatten().mean().item()
    gain = ratio(torch.cat(after), torch.cat(before))
    report = {
        "explained": fitted.explained,
        "held_out": {
            "before": mean_with_error(torch.cat(before)),
            "after": mean_with_error(torch.cat(after)),
            "ratio": gain._asdict(),
        },
        "reference_change_from_half": change,
    }
    return Card(fitted.correction, problem.identity, tuple(gain), report)


def paths(
    problem: Problem, seeds: Sequence[int], role: str, evaluations: int, parts: Parts
) -> Iterator[ReferenceBatch]:
    """Yield noise, labels and reference path of every batch of seeds."""
    for number, group in enumerate(problem.batches(seeds)):
        noise, labels = problem.draw(group)
        noise = noise.to(problem.settings.dtype)

        def solve_path(noise: Tensor = noise, labels: Tensor | None = labels) -> Tensor:
            drift = problem.exact_drift(labels)
            return reference_path(drift, noise, problem.sigmas, evaluations)

        yield ReferenceBatch(noise, labels, parts.keep_rows(f"{role} {number}", solve_path))


def count_paths(problem: Problem, *seeds: Sequence[int]) -> int:
    """Count the reference paths that a calibration keeps."""
    return sum(len(problem.batches(part)) for part in seeds)


def check_seeds(seeds: Sequence[int], held_out: Sequence[int]) -> None:
    """Raise ValueError unless errors can be measured on samples that the fit has not seen."""
    check_seed_lists(seeds, held_out, (1, 2))  # two for a standard error


def check_directions(directions: Sequence[str]) -> None:
    """Raise ValueError for an unknown, a repeated or no direction."""
    unknown = next((name for name in directions if name not in DIRECTIONS), None)
    if unknown is not None or not directions or len({*directions}) < len(directions):
        raise ValueError(
            f"--direction takes different names of {', '.join(DIRECTIONS)}, not "
            f"'{', '.join(directions)}'."
        )


def cost_of(problem: Problem, seeds: int, held_out: int, evaluations: int) -> dict[str, int]:
    """Count the network evaluations of a calibration, one sample each, without any network."""

    def zero(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    settings = with_levels(problem.settings, problem.model)
    sigmas, noise = settings.sigmas(), torch.zeros(1, 1)
    guide = None if settings.guidance == 1 else zero
    runs = [settings.drift(zero, None, guide) for _ in range(3)]
    solve(runs[0], noise, settings)
    reference_path(runs[1], noise, sigmas, evaluations)
    reference_path(runs[2], noise, ends(sigmas), evaluations // 2)
    samples = (seeds + 2 * held_out, seeds + held_out, min(problem.batch, held_out))
    counts = {
        kind: int(sum(n * getattr(run, kind) for n, run in zip(samples, runs, strict=True)))
        for kind in ("nfe", "guide_nfe")
    }
    return {
        "evaluations": counts["nfe"],
        "guide_evaluations": counts["guide_nfe"],
        "per_image": int(runs[0].nfe),
    }

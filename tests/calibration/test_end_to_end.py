"""Gauss-Newton finds what is known in closed form, and never leaves the start for worse."""

import pytest
import torch

from erk.calibration.end_to_end import (
    DIFFERENCE,
    _derivatives,
    decreases,
    fit_end_to_end,
    gauss_newton,
    levels_of,
    logs_of,
    refine_levels,
)
from erk.calibration.fit import ReferenceBatch, fit, walk_of
from erk.calibration.problem import gaussian, problem_for
from erk.method.corrections import Correction
from erk.method.settings import Settings

PLAIN = Settings(solver="dpm2", steps=4, schedule="polynomial", dtype=torch.float64)


def gaussian_batch(settings, seed=0):
    """Noise with its exact solutions: x goes as sqrt(S^2 + sigma^2)."""
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sigmas = settings.sigmas()
    radius = (0.25 + sigmas**2).sqrt()
    return ReferenceBatch(noise, None, [noise * sigmas[0] * r / radius[0] for r in radius])


def test_the_mean_distance_and_not_the_mean_square_is_lowered():
    """The point nearest to 0, 0 and 3 on average is their median, 0; their mean is 1."""
    targets = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64)
    p = gauss_newton(lambda p: p - targets, torch.tensor([1.0], dtype=torch.float64))
    assert p.item() < 0.35


def test_a_start_that_nothing_improves_stays():
    start = torch.tensor([2.0], dtype=torch.float64)
    residual = lambda p: torch.ones(3, 1, dtype=torch.float64) * (1 + (p - 2).square())  # noqa: E731
    assert torch.equal(gauss_newton(residual, start), start)
    assert torch.equal(gauss_newton(residual, start + 1, allowed=lambda _: False), start + 1)


@pytest.mark.parametrize("sigmas", [(80.0, 5.0, 1.0, 0.1), (80.0, 5.0, 1.0, 0.1, 0.0)])
def test_levels_and_their_logarithms(sigmas):
    logs = logs_of(sigmas)
    assert len(logs) == 2 and levels_of(logs, sigmas) == pytest.approx(sigmas)
    assert decreases(logs, sigmas) and not decreases(logs.flip(0), sigmas)
    assert not decreases(logs + 3, sigmas)  # 100 is above 80


def test_refined_levels_are_nearer_to_the_solution():
    problem = problem_for(gaussian, PLAIN)
    batch, sigmas = gaussian_batch(PLAIN), PLAIN.sigmas().tolist()

    def states(levels):
        chosen = Settings(solver="dpm2", schedule=levels, dtype=torch.float64)
        walk = walk_of(problem._replace(settings=chosen), ["embedded"])
        return [walk.follow(None, walk.start(batch.noise), [[0.0]] * 4)]

    levels = refine_levels(states, [batch.path[-1]], sigmas)
    assert levels[0] == sigmas[0] and levels[-1] == sigmas[-1]
    before, after = ((states(one)[0] - batch.path[-1]).norm() for one in (sigmas, levels))
    assert after < 0.5 * before


@pytest.mark.parametrize("free", [True, False])
def test_one_weight_a_step_and_the_levels_solve_a_gaussian(free):
    """The derivatives by weights start again at their step: the fit reaches the solution."""
    problem = problem_for(gaussian, PLAIN)
    batch = gaussian_batch(PLAIN)
    first = fit(problem, [batch], ["embedded"])
    spoilt = first._replace(
        correction=first.correction.__class__(
            first.correction.sigmas, first.correction.directions, ((0.0,),) * 4
        )
    )
    levels, correction = fit_end_to_end(problem, [batch], spoilt, free)
    assert (levels == tuple(PLAIN.sigmas().tolist())) != free
    settings = Settings(solver="dpm2", schedule=levels, dtype=torch.float64)
    walk = walk_of(problem._replace(settings=settings), ["embedded"])
    end = walk.follow(None, walk.start(batch.noise), correction.weights)
    plain = walk_of(problem, ["embedded"]).follow(None, walk.start(batch.noise), [[0.0]] * 4)
    assert (end - batch.path[-1]).norm() < 1e-2 * (plain - batch.path[-1]).norm()
    assert correction.sigmas == pytest.approx(levels)


@pytest.mark.parametrize("size", [0.1, 30.0])
def test_the_fit_walks_as_the_run_samples_also_where_corrections_are_shortened(size):
    """And the derivatives by weights are those of that run."""
    problem, batch = problem_for(gaussian, PLAIN), gaussian_batch(PLAIN)
    directions, n = ("embedded", "drift"), 4
    rows = torch.full((n, 2), size, dtype=torch.float64)

    def ends(rows):
        walk = walk_of(problem, directions)
        return walk.follow(None, walk.start(batch.noise), rows.tolist())

    walk = walk_of(problem, directions)
    levels = tuple(walk.levels.tolist())
    card = Correction(levels, directions, tuple(map(tuple, rows.tolist())))
    run = problem.run(batch.noise, None, card)
    assert torch.allclose(ends(rows), run, rtol=1e-9, atol=1e-9)
    for i, derivative in enumerate(_derivatives(walk, [batch], rows.tolist())):
        moved = rows.clone()
        moved[i // 2, i % 2] += DIFFERENCE
        exact = (ends(moved) - ends(rows)).flatten(1) / DIFFERENCE
        assert (derivative - exact).norm() < 1e-3 * exact.norm() + 1e-6 * run.norm()

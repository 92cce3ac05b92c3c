"""Points and steps."""

import pytest
import torch
from problems import gaussian_drift

from erk.method.point import Point, Step, dot, level_for, norm
from erk.method.sampler import steps
from erk.method.solvers import SOLVERS, make_solver


@pytest.mark.parametrize("name", SOLVERS)
def test_the_step_of_every_solver_is_complete(name):
    """It carries its interval, its number, and the state from which the solver began."""
    sigmas = torch.linspace(2, 1, 7, dtype=torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64)
    for i, (state, step) in enumerate(
        steps(gaussian_drift, x, sigmas, make_solver(name, {}, sigmas))
    ):
        assert step.index == i
        assert (step.start.sigma, step.sigma_next) == (sigmas[i], sigmas[i + 1])
        assert step.length == sigmas[i + 1] - sigmas[i]
        assert torch.equal(step.euler, x + step.length * step.start.f)
        assert (step.twin is None) == (step.h is None or (i == 0 and step.twin is None))
        x = state
    assert step.twin is not None


def test_a_step_without_its_end_has_no_length():
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="has no sigma_next: give Step"):
        _ = Step(x, Point(x, x, torch.tensor(1.0))).length


def test_norms_and_products_are_per_sample():
    a = torch.arange(12.0).reshape(2, 3, 2)
    assert norm(a).shape == dot(a, a).shape == (2, 1, 1)
    assert torch.allclose(norm(a) ** 2, dot(a, a))


@pytest.mark.parametrize("sigma", [torch.tensor(2.0), torch.tensor([2.0, 3.0])])
def test_levels_broadcast_over_samples(sigma):
    x = torch.ones(2, 3, 4, dtype=torch.float64)
    level = level_for(x, sigma)
    assert level.ndim == 3 and level.dtype == x.dtype and (level * x).shape == x.shape

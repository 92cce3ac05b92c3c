"""The paper's statements about stiffness, each under its number (S8).

Linear drifts f(x) = J x with known eigenvectors, so that every sum over k is exact.
"""

import pytest
import torch

from erk.method.point import Point
from erk.method.solvers import euler, heun
from erk.method.stiffness import stiffness

RATES = torch.tensor([-9.0, -2.0, 0.5, 3.0], dtype=torch.float64)
VECTORS = torch.linalg.qr(
    torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
)[0]  # orthonormal columns v_k
JACOBIAN = VECTORS @ RATES.diag() @ VECTORS.T
X = torch.tensor([[0.3, -1.0, 0.7, 2.0]], dtype=torch.float64)
SIGMA, NEXT = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
H = (SIGMA - NEXT).item()
Z = -H * RATES  # z_k of the step from sigma down to sigma - h


def drift(x, sigma):
    return Point(x, x @ JACOBIAN.T, sigma)


def spectral(factor):
    """-h sum_k factor_k <f, v_k> v_k."""
    return -H * ((drift(X, SIGMA).f @ VECTORS) * factor) @ VECTORS.T


def steps():
    """(Euler's answer, Heun's answer)."""
    return (solver(drift, X, SIGMA, NEXT, None).x for solver in (euler, heun))


def test_equation_13_heuns_increment():
    _, answer = steps()
    torch.testing.assert_close(answer - X, spectral(1 + Z / 2))


def test_equation_14_the_exact_increment():
    """phi(z) = (e^z - 1)/z; the solution of x' = J x is a matrix exponential."""
    exact = X @ torch.linalg.matrix_exp(-H * JACOBIAN).T
    torch.testing.assert_close(exact - X, spectral(torch.expm1(Z) / Z))


def test_equation_16_the_solution_difference():
    first, second = steps()
    torch.testing.assert_close(second - first, spectral(Z / 2))


def curved(x, sigma):
    """A drift with a Lipschitz Jacobian, which is JACOBIAN at the state 0."""
    return Point(x, x @ JACOBIAN.T + 0.5 * x.square() @ VECTORS, sigma)


@pytest.mark.parametrize("mixed", [0.0, 1e-4])
def test_proposition_1_and_equation_42_stiffness_is_the_dominant_eigenvalue(mixed):
    """|lambda| = |df|/|dx| + O(|dx|), for a difference along the dominant eigenvector."""
    errors = []
    for size in (1e-2, 1e-3, 1e-4):
        difference = size * (VECTORS[:, :1].T + mixed * VECTORS[:, 1:2].T)
        estimate = stiffness(curved(torch.zeros_like(X), SIGMA), curved(difference, SIGMA))
        errors.append(abs(estimate.rho.item() - 9.0))
        assert abs((estimate.v @ VECTORS[:, 0]).item()) == pytest.approx(1, abs=2 * size)
    assert errors[0] < 0.1 and errors[1] < 0.2 * errors[0] + 1e-6
    assert errors[2] < 0.2 * errors[1] + 1e-6

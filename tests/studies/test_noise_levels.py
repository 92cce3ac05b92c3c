"""The rival noise levels of the study, against those of their authors' code."""

import numpy as np
import pytest

from scripts.studies.levels import bound, weights_of, xue

ENDS = -5.024978406659204, 4.557714932729866  # ln(alpha / sigma), linear VP process, t 1 to .001


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (np.linspace(*ENDS, 7)[1:-1], 171.03053084317247),
        (np.array([-3.0, -2.0, -1.5, 0.0, 2.0]), 73.6086596531843),
    ],
)
def test_the_bound_is_that_of_the_released_code(inner, expected):
    """Values of github.com/scxue/DM-NonUniform at 5d00ad6, sel_lambdas_lof_obj."""
    assert bound(inner, ENDS) == pytest.approx(expected, rel=1e-9)


def test_the_levels_are_those_of_the_released_code():
    """Values of the same code, get_ts_lambdas(6, 1e-3, "unif"), to three decimals."""
    levels = xue(6, float(np.exp(-ENDS[1])), float(np.exp(-ENDS[0])))
    expected = [ENDS[0], -2.545, -1.423, -0.811, 0.1, 1.257, ENDS[1]]
    assert -np.log(levels) == pytest.approx(expected, abs=1e-3)


def test_the_weights_of_a_step_add_up():
    """A constant denoised image is integrated exactly: e^(lambda_n+1) - e^(lambda_n)."""
    lambdas = np.array([-4.0, -2.0, -1.5, 0.0, 1.0, 4.0])
    sums = [row.sum() for row in weights_of(lambdas)]
    assert sums == pytest.approx(np.diff(np.exp(lambdas)))

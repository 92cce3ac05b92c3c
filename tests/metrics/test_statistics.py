"""Features of any type and layout are the numbers that they hold."""

import numpy as np
import pytest
import torch

from metrics.distances import fd_infinity, kernel_distance
from metrics.neighbours import density_coverage
from metrics.statistics import as_features

NORMAL = np.random.default_rng(0).normal(size=(60, 6))
WHOLE = np.arange(2**40, 2**40 + 120).reshape(60, 2)  # equal in float32

LAYOUTS = {
    "of float16": NORMAL.astype(np.float16),
    "of bfloat16": torch.from_numpy(NORMAL).bfloat16(),
    "of the other byte order": NORMAL.astype(">f4"),
    "of long doubles": NORMAL.astype(np.longdouble),
    "backwards": NORMAL[::-1, ::-1],
    "in columns": np.asfortranarray(NORMAL),
    "every other": np.repeat(NORMAL, 2, 1)[:, ::2],
    "of large integers": WHOLE,
    "of large integers in a tensor": torch.from_numpy(WHOLE),
    "of booleans": NORMAL > 0,
    "in lists": NORMAL.tolist(),
    "of one column": NORMAL[:, :1],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", LAYOUTS)
def test_features_keep_their_numbers(name):
    values = LAYOUTS[name]
    features = as_features(values, "real", 2)
    expected = values.double().numpy() if isinstance(values, torch.Tensor) else values
    np.testing.assert_array_equal(features, np.asarray(expected, np.float64))
    alike = density_coverage(real=values, generated=values)
    assert alike == (1, 1) if name != "of booleans" else alike[0] < 1  # ties: nothing is nearer
    plain = np.array(expected, np.float64)
    assert kernel_distance(real=values, generated=values, subset_size=20) == kernel_distance(
        real=plain, generated=plain, subset_size=20
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [NORMAL + 1j, torch.ones(9, 2) * 1j, NORMAL.astype(str)])
def test_what_is_no_real_number_is_refused(values):
    with pytest.raises(ValueError, match="real features must be real numbers, not"):
        as_features(values, "real", 2)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (9, 0), (9,), (9, 3, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="N >= 2 and D >= 1"):
        as_features(np.zeros(shape), "real", 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_bad_number_is_named(bad):
    values = NORMAL.copy()
    values[41, 3] = bad
    for function in (
        lambda: as_features(values, "real", 2),
        lambda: kernel_distance(real=NORMAL, generated=values, subset_size=20),
        lambda: fd_infinity((np.zeros(6), np.eye(6)), values),
    ):
        with pytest.raises(ValueError, match="first in row 41"):
            function()

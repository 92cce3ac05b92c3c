"""Reference statistics: plain pickles of numbers, of every protocol and numpy."""

import pickle

import numpy as np
import pytest

from erk.io import pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reference_statistics_are_read_as_numbers(tmp_path, protocol):
    random = np.random.RandomState(0)
    cov = random.standard_normal((6, 6))
    content = {
        "fid": {"mu": random.standard_normal(6), "sigma": cov @ cov.T},
        "fd_dinov2": {"mu": cov[1], "sigma": cov.T},  # a view; Fortran's order
        "halves": cov.astype(np.float32)[::2, ::3],
        "swapped": cov.astype(">f8"),
        "counts": np.arange(4),
        "flags": np.array([True, False]),
        "scalar": np.float64(2.5),
        "zero_dim": np.array(7.0),
        "num_images": 50000,
    }
    path = tmp_path / "refs.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    again = pickles.load(path)
    assert list(again) == list(content)
    for part in ("fid", "fd_dinov2"):
        for key, value in content[part].items():
            assert again[part][key].dtype == np.float64
            np.testing.assert_array_equal(again[part][key], value)
    for key in ("halves", "swapped", "counts", "flags", "scalar", "zero_dim", "num_images"):
        np.testing.assert_array_equal(again[key], content[key])
        assert np.asarray(again[key]).dtype.str[1:] == np.asarray(content[key]).dtype.str[1:]


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_spellings_of_numpy_are_read(tmp_path, protocol):
    data = pickle.dumps({"mu": np.arange(5.0), "n": np.float64(3)}, protocol)
    for spelling in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        path = tmp_path / "refs.pkl"
        renamed = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        path.write_bytes(renamed.replace(b"numpy.core.multiarray", spelling))
        again = pickles.load(path)
        assert again["mu"].tolist() == [0, 1, 2, 3, 4] and again["n"] == 3

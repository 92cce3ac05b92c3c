"""Devices without float64 (Apple's MPS), which no machine of the tests has: finding 23."""

import pytest
import torch

import erk
from erk.method.point import to_double
from erk.method.settings import check_double


class OnMps:
    """A tensor of a device without float64."""

    device = torch.device("mps")

    def cpu(self):
        return torch.ones(2)

    def double(self):
        raise TypeError("the MPS framework does not support float64")


class Model:
    """A denoiser on that device."""

    device, churn_rule = torch.device("mps"), "edm"


def test_wide_sums_are_computed_on_the_cpu():
    assert to_double(OnMps()).dtype == torch.float64
    x = torch.ones(2, device="meta")
    assert to_double(x).dtype == torch.float64 and to_double(x).device.type == "meta"


@pytest.mark.parametrize("settings", [{"dtype": torch.float64}, {"S_churn": 5.0}], ids=str)
def test_a_float64_state_is_refused(settings):
    with pytest.raises(
        ValueError, match="mps has no float64, .* take torch.float32 and churn_rule"
    ):
        erk.Settings(**settings).sigmas(Model())
    check_double(torch.float64, "cpu")
    check_double(torch.float32, "mps")


@pytest.mark.parametrize("settings", [{}, {"S_churn": 5.0, "churn_rule": "edm2"}], ids=str)
def test_a_float32_state_is_not(settings):
    assert erk.Settings(**settings).sigmas(Model()).dtype == torch.float32

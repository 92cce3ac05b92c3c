"""The one runner of the studies."""

import pytest
import torch
from click.testing import CliRunner

from erk.method.corrections import Correction
from scripts.studies.__main__ import STUDIES, main
from scripts.studies.variants import resampled, smoothed


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_command(name):
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0 and "--help" in done.output


def test_weights_that_do_not_change_stay_when_smoothed_and_resampled():
    weights = torch.full((4, 1), 0.3)
    assert torch.allclose(smoothed(weights), weights)
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    correction = Correction(tuple(sigmas.tolist()), ("drift",), ((0.2,), (0.2,), (0.2,)))
    same = resampled(correction, sigmas)
    assert same.sigmas == correction.sigmas
    assert torch.allclose(torch.tensor(same.weights), torch.tensor(correction.weights))

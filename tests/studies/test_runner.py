"""The one runner of the studies."""

import re

import pytest
import torch
from click.testing import CliRunner

from erk.method.corrections import Correction
from scripts.studies.__main__ import STUDIES, main
from scripts.studies.records import NAMES, text_of
from scripts.studies.rows import RESULTS
from scripts.studies.variants import resampled, smoothed


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_command(name):
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0 and "--help" in done.output


@pytest.mark.parametrize("name", NAMES)
def test_the_records_are_those_of_their_rows(name):
    """A record has a heading, which is its title in the site, and then names its command."""
    text = text_of(RESULTS, name)
    assert text == (RESULTS / f"{name}.md").read_text("utf-8"), "python -m scripts.studies records"
    heading, command = text.split("\n\n")[:2]
    assert heading.startswith("# ")
    assert command.startswith(f"`python -m scripts.studies {name}`: ")


def test_no_recorded_command_has_a_folder_of_one_machine():
    """A reader cannot repeat a command with the folders of another machine."""
    wrong = [path.name for path in RESULTS.glob("*.json")
             if re.search(r'"command": "[^"]*[ =]/', path.read_text("utf-8"))]  # fmt: skip
    assert not wrong


def test_weights_that_do_not_change_stay_when_smoothed_and_resampled():
    weights = torch.full((4, 1), 0.3)
    assert torch.allclose(smoothed(weights), weights)
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    correction = Correction(tuple(sigmas.tolist()), ("drift",), ((0.2,), (0.2,), (0.2,)))
    same = resampled(correction, sigmas)
    assert same.sigmas == correction.sigmas
    assert torch.allclose(torch.tensor(same.weights), torch.tensor(correction.weights))

"""The progress bar moves within a batch (friction 7 of newcomers), never back."""

from types import SimpleNamespace

import pytest
import torch

import erk.generation.sampling
import metrics.features
from erk.generation.images import save_images
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.models.model import load_model
from erk.runtime.progress import duration, image_bar, within_batch
from metrics.features import extract


@pytest.fixture
def positions(monkeypatch):
    """Collect the positions that a module reports."""

    def of(module):
        reported = []
        monkeypatch.setattr(module, "within_batch", reported.append)
        return reported

    return of


def test_the_bar_moves_within_a_batch_and_never_back(capsys):
    within_batch(1.0)  # without a bar: nothing
    with image_bar(8, "Sampling") as bar:
        for images, position in ((0.5, 0.5), (2, 2), (1.5, 2)):
            within_batch(images)
            assert bar._bar.n == position
        bar.finish(4)
        within_batch(1.25)
        assert bar._bar.n == 5.25 and bar.finished == 4
        bar.finish(4)
    shown = capsys.readouterr().err
    assert "Sampling: 100%" in shown and "8/8" in shown


def test_other_processes_show_nothing(capsys, monkeypatch):
    clock = SimpleNamespace(monotonic=iter(range(0, 900, 100)).__next__)
    monkeypatch.setattr("erk.runtime.progress.time", clock)
    with image_bar(50_000, "Sampling", is_shown=False) as bar:
        within_batch(1.0)
        bar.finish(8)
        bar.finish(8)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("batch", "text"), [
    (3.0, "50000 images take about 1 h 19 min, by the second batch"), (0.03, "")])  # fmt: skip
def test_the_second_batch_says_how_long_a_long_run_takes(capsys, monkeypatch, batch, text):
    """N5: 50 s, of which compilation takes most, then 32 images in `batch` seconds, once."""
    clock = SimpleNamespace(monotonic=iter([0.0, 50.0, 50.0 + batch]).__next__)
    monkeypatch.setattr("erk.runtime.progress.time", clock)
    with image_bar(50_000, "Sampling") as bar:
        for _ in range(3):
            bar.finish(32)
    lines = [line for line in capsys.readouterr().err.splitlines() if "take about" in line]
    assert [line.strip() for line in lines] == [text] * bool(text)


@pytest.mark.parametrize(("seconds", "text"), [
    (61, "1 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min"), (104_400, "1 d 5 h")])  # fmt: skip
def test_a_duration_has_at_most_two_units(seconds, text):
    assert duration(seconds) == text


def test_sampling_reports_every_step(positions):
    reported = positions(erk.generation.sampling)
    job = Job(load_model("digits", "cpu"), Settings(steps=4), seeds=range(6), batch=4)
    list(generate(job))
    assert reported == [1, 2, 3, 4, 0.5, 1, 1.5, 2]


def test_extraction_reports_every_call_of_every_network(positions, tmp_path):
    reported = positions(metrics.features)

    def network(images):
        return SimpleNamespace(_asdict=lambda: {"features": images.float().flatten(1)})

    save_images(torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8), tmp_path)
    extract(tmp_path, {"pixels": network, "again": network}, batch=4)
    assert reported == [2, 4, 5, 7, 9, 10]

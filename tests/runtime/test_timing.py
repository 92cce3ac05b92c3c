"""--profile: every second stands in one row, and the rows are the wall time together."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from erk.commands.generate import main
from erk.generation import archives, run_folder
from erk.generation.job import Job
from erk.generation.run_folder import RunFolder
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.models.model import load_model
from erk.runtime.timing import OFF, PARTS, WRITER, Timer

CPU = torch.device("cpu")


class Clock:
    """A clock that only what is measured moves."""

    now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds, function=lambda *_: None):
        """The function, which takes so long."""

        def slow(*arguments, **named):
            self.now += seconds
            return function(*arguments, **named)

        return slow


def test_every_second_is_somewhere(tmp_path, monkeypatch):
    """Two batches of a Heun run of 2 steps: 3 evaluations of 5 s, a decode of 7 s, 1 s between."""
    clock, model = Clock(), load_model("digits")
    timer = Timer(CPU, clock)
    monkeypatch.setattr(model.network, "forward", clock.takes(5, model.network.forward))
    monkeypatch.setattr(model.encoder, "decode", clock.takes(7, model.encoder.decode))
    monkeypatch.setattr(run_folder, "png_bytes", clock.takes(2, run_folder.png_bytes))
    monkeypatch.setattr(archives, "write_file", clock.takes(3, lambda *_: None))
    folder = RunFolder(tmp_path, {}, range(4), timer=timer)
    (tmp_path / ".parts").mkdir()
    with timer.host("wall"):
        for batch in generate(Job(model, Settings(steps=2), seeds=range(4), batch=2), timer=timer):
            clock.takes(1)()
            with timer.host("waited"):
                folder.write(batch)  # before the block of the run: nothing is in the background
    result = timer.seconds()
    assert result == {"network": 30, "VAE": 14, "copy": 0, "idle": 22, "wall": 66, "encode": 8,
                     "write": 12, "waited": 20}  # fmt: skip
    assert sum(result[name] for name in (*PARTS, "idle")) == result["wall"]
    assert re.search(r"network +30\.00 +45\.5%\n.*\n.*\nidle +22\.00 +33\.3%", timer.table())


def test_nothing_is_measured_unless_asked_for():
    with OFF.part("network"):
        pass
    assert OFF._intervals == []


def test_the_option_prints_a_table_that_sums(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = ["--preset", "digits", "--device", "cpu", "--steps", "3", "--batch", "4", "--seeds",
           "0-11"]  # fmt: skip
    report = CliRunner().invoke(main, [*job, "--profile"])
    assert report.exit_code == 0, report.output
    rows = dict(re.findall(r"^(\w+) +([\d.-]+) +[\d.-]+%$", report.stdout, re.M))
    assert [*rows] == [*PARTS, "idle", "wall", *WRITER]
    seconds = {name: float(value) for name, value in rows.items()}
    parts = sum(seconds[name] for name in (*PARTS, "idle"))
    assert parts == pytest.approx(seconds["wall"], abs=0.03)  # each is rounded to 0.01
    assert 0 < seconds["network"] <= seconds["wall"] and seconds["idle"] >= 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "profile" not in {*record, *record["settings"]}
    refused = CliRunner().invoke(main, [*job, "--profile", "--evaluate", "digits"])
    assert refused.exit_code == 2 and "--profile needs images on the disk" in refused.stderr


@pytest.mark.gpu
def test_on_cuda_the_parts_are_the_devices_own(tmp_path):
    model, profile = load_model("digits", "cuda"), Timer(torch.device("cuda"))
    job = Job(model, Settings(steps=3), seeds=range(6), batch=4)
    with profile.host("wall"):
        written = list(
            generate(Job(model, Settings(steps=3), seeds=range(6), batch=4), profile=profile)
        )
    result = profile.seconds()
    assert all(result[name] > 0 for name in PARTS) and result["idle"] >= 0
    assert sum(result[name] for name in (*PARTS, "idle")) == pytest.approx(result["wall"])
    plain = list(generate(job))
    for one, other in zip(written, plain, strict=True):
        assert one.images.is_pinned() and np.array_equal(one.images, other.images)

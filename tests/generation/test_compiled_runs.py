"""Whether a run compiles its networks: decided once, recorded, and the same wherever it goes on."""

import json
from pathlib import Path

import pytest
import torch
from injection import JOB, check_refused

from erk.generation import options
from erk.generation.options import is_compiled
from erk.method.corrections import Correction
from erk.method.settings import Settings
from erk.models import compiling, model

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LEVELS = tuple(Settings(solver="heun").sigmas().tolist())
CORRECTION = Correction((1.0, 0.5), ("drift",), ((0.1,),))


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Return the devices of networks that are compiled; the compiler itself is left out."""
    devices = []
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "check_compiler", lambda device: None)
    monkeypatch.setattr(model, "compile_network", lambda network, device: devices.append(device))
    monkeypatch.setattr(options, "compiler_fault", lambda device: None)
    options._can_compile.cache_clear()
    yield devices
    options._can_compile.cache_clear()


def precision(folder="out"):
    return json.loads(Path(folder, "run.json").read_text())["settings"]["precision"]


@pytest.mark.parametrize(("settings", "images", "expected"), [
    (Settings(), 50_000, True),
    (Settings(), 1000, False),
    (Settings(guidance=2.0), 9000, True),  # the guide's evaluations count as well
    (Settings(), 9000, False),
    (Settings(schedule="discrete"), 50_000, True),  # only the network knows its levels
    (Settings(schedule="discrete", steps=1), 1000, False),  # EDM's schedule has 2 steps at least
    (Settings(erk=CORRECTION), 50_000, True),  # of a network that is not loaded yet
])  # fmt: skip
def test_auto_compiles_long_runs_on_cuda(compiled, settings, images, expected):
    assert is_compiled("auto", settings, images, CUDA) == expected
    assert not is_compiled("auto", settings, images, CPU)
    for device in (CUDA, CPU):
        assert is_compiled("always", settings, images, device)
        assert not is_compiled("never", settings, images, device)


def test_an_unknown_policy_is_refused(compiled):
    with pytest.raises(ValueError, match="--compile must be auto, always, never, not 'yes'"):
        is_compiled("yes", Settings(), 1, CPU)


def test_the_rule_does_not_depend_on_times_measured_here(compiled):
    """Else the second run of a command could round otherwise than the first."""
    key = compiling.compilation_key("", 32, CPU)
    for seconds in (1.0, 10_000.0):
        time = {"total_wall_time": seconds}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch._dynamo.utils, "calculate_time_spent", time.copy)
            compiling.keep_seconds(key)
        assert is_compiled("auto", Settings(), 50_000, CUDA)
        assert not is_compiled("auto", Settings(), 1000, CUDA)


def test_auto_goes_without_a_compiler_that_does_not_work(compiled, monkeypatch, capsys):
    monkeypatch.setattr(options, "compiler_fault", lambda device: "no Triton")
    assert not is_compiled("auto", Settings(), 50_000, CUDA)
    assert not is_compiled("auto", Settings(), 50_000, CUDA)
    sentence = "compiled networks would shorten this run, but the compiler fails (no Triton)\n"
    assert capsys.readouterr().err == sentence  # once


def test_a_resumed_run_does_as_its_record_says(compiled, generate):
    """Whatever the rule says for the seeds of this command."""
    done = generate(*JOB[:-1], "0-3", "--compile", "always")
    assert done.exit_code == 0 and len(compiled) == 1
    assert "compiles the networks once (about 90 s on an H100, predicted; 4 images)" in done.stderr
    assert precision() == "auto on cpu, compiled"
    done = generate(*JOB)
    assert done.exit_code == 0 and "16 of them new" in done.stdout and len(compiled) == 2
    assert precision() == "auto on cpu, compiled"
    check_refused(generate(*JOB, "--compile", "never"), "precision auto on cpu, compiled there")
    assert len(compiled) == 2


def test_a_resumed_run_that_was_not_compiled_stays_so(compiled, generate, monkeypatch):
    assert generate(*JOB[:-1], "0-3").exit_code == 0 and precision() == "auto on cpu"
    monkeypatch.setattr(options, "pays", lambda *_: True)
    assert generate(*JOB).exit_code == 0 and compiled == []
    check_refused(generate(*JOB, "--compile", "always"), "precision auto on cpu there")
    assert generate(*JOB, "--outdir", "new").exit_code == 0 and len(compiled) == 1
    assert precision("new") == "auto on cpu, compiled"


def test_shards_decide_from_the_images_of_all(compiled, generate, monkeypatch):
    monkeypatch.setattr(options, "pays", lambda images, *_: images >= 20)
    for i in range(2):
        done = generate(*JOB, "--shard", f"{i}/2", "--outdir", f"part{i}")
        assert done.exit_code == 0 and precision(f"part{i}") == "auto on cpu, compiled"


def test_a_guide_is_compiled_too_and_a_film_is_not(compiled, generate):
    job = ["--preset", "digits-autog", *JOB[2:-1], "0-3", "--compile", "always"]
    assert generate(*job, "--animate", "film.gif").exit_code == 0
    assert len(compiled) == 2

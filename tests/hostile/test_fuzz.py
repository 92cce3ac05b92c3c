"""Thousands of mutated files: each is read, or refused in one sentence, within bounds."""

import base64
import os
import shutil
from pathlib import Path

import pytest
from hostile.builders import CANARY
from hostile.formats import FORMATS
from hostile.guard import read_all
from hostile.mutate import changed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the guard forks")

FEW = 16  # changed files of each format, in every test run
MANY = 600  # in the slow tests: 10 800 in all
ROUND = 100  # files in one process


def survey(kind, seeds, scratch):
    """Read a sound file, then mutated ones; return the number refused. Fail on any fault."""
    folder = scratch / "sound"
    sound = FORMATS[kind].sound()
    for name, data in sound.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    FORMATS[kind].read(folder)
    shutil.rmtree(folder)
    refused = 0
    for first in range(seeds.start, seeds.stop, ROUND):
        some = range(first, min(first + ROUND, seeds.stop))
        files_of = [changed(sound, f"{kind} {seed}") for seed in some]
        outcomes = read_all([(FORMATS[kind].read, files) for files in files_of], scratch)
        for seed, files, outcome in zip(some, files_of, outcomes, strict=True):
            assert not outcome.faults, reproducer(kind, seed, sound, files, outcome)
            refused += outcome.error is not None
    assert not list(scratch.rglob(f"{CANARY}*")) and not Path(CANARY).exists()
    return refused


def reproducer(kind, seed, sound, files, outcome):
    """Describe the fault, and the mutated file as code that writes it again."""
    name = next(name for name in files if files[name] != sound[name])
    data = base64.b85encode(files[name]).decode()
    return f"{kind}, seed {seed}: {outcome.faults}\n{name} = base64.b85decode({data!r})"


@pytest.mark.parametrize("kind", FORMATS)
def test_some_changed_files(kind, memory_path):
    assert survey(kind, range(FEW), memory_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_many_changed_files(kind, memory_path):
    assert survey(kind, range(FEW, FEW + MANY), memory_path) > MANY / 10


def test_a_seed_is_a_file():
    """The same seed gives the same mutation, most seeds a different file."""
    sound = FORMATS["images zip"].sound()
    assert changed(sound, "a") == changed(sound, "a") != changed(sound, "b")
    assert sum(changed(sound, str(seed)) != sound for seed in range(50)) > 40

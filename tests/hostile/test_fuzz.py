"""Thousands of changed files: each is read, or refused in one sentence, within bounds."""

import base64
import os
import shutil
from pathlib import Path

import pytest
from hostile.corpus import CANARY
from hostile.formats import FORMATS
from hostile.guard import read_all
from hostile.mutate import changed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the guard forks")

FEW = 16  # changed files of each format, in every test run
MANY = 600  # by night: 10 800 in all
ROUND = 100  # files in one process


def survey(kind, seeds, place):
    """Read a sound file, then changed ones; the number that were refused. Fails on any fault."""
    folder = place / "sound"
    sound = FORMATS[kind].sound()
    for name, data in sound.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    FORMATS[kind].read(folder)
    shutil.rmtree(folder)
    refused = 0
    for first in range(seeds.start, seeds.stop, ROUND):
        some = range(first, min(first + ROUND, seeds.stop))
        made = [changed(sound, f"{kind} {seed}") for seed in some]
        outcomes = read_all([(FORMATS[kind].read, files) for files in made], place)
        for seed, files, outcome in zip(some, made, outcomes, strict=True):
            assert not outcome.faults, reproducer(kind, seed, sound, files, outcome)
            refused += outcome.error is not None
    assert not list(place.rglob(f"{CANARY}*")) and not Path(CANARY).exists()
    return refused


def reproducer(kind, seed, sound, files, outcome):
    """What happened, and the changed file, which can be written again from this text."""
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
    """The same change for the same seed, another for another; most do change something."""
    sound = FORMATS["images zip"].sound()
    assert changed(sound, "a") == changed(sound, "a") != changed(sound, "b")
    assert sum(changed(sound, str(seed)) != sound for seed in range(50)) > 40

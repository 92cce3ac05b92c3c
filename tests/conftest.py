"""Shared by all tests: one thread, so that the machine's load and xdist do not slow them."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import erk.runtime.memory

torch.set_num_threads(1)
# Commands that run in this process must not keep its freed memory: tests/hostile measures peaks.
erk.runtime.memory.keep_freed_memory = lambda: None


def pytest_configure(config):
    """A GPU is for the tests that are marked so (-m gpu); all others are about the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and -m gpu"))


@pytest.fixture
def memory_path(tmp_path):
    """A folder in memory where there is one: syncing a thousand files to a disk takes a minute."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as own:
        yield Path(own)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own in memory; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here; the injected full disk is tested all the same")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def extractor():
    from metrics.extractors import load_extractor

    return load_extractor("digits")


@pytest.fixture(scope="session")
def reference(extractor):
    from metrics.references import load_reference

    return load_reference("digits", {"digits": extractor})


@pytest.fixture(scope="session")
def digits():
    from metrics.references import real_images

    return real_images("digits")


@pytest.fixture
def save_pngs(tmp_path):
    """Writes uint8 [N, 1, H, W] as tmp_path/name/000000.png ... and returns the folder."""

    def save(images, name="out"):
        folder = tmp_path / name
        folder.mkdir()
        for seed, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(folder / f"{seed:06d}.png")
        return folder

    return save

"""Fixtures of all rooms. PyTorch uses one thread, so that load and xdist do not slow the tests."""

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
    """Hide GPUs from all tests but those marked gpu (-m gpu)."""
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
    """Return a folder in memory where possible: a thousand fsyncs to a disk take a minute."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@pytest.fixture
def small_disk(tmp_path):
    """Return the root of a new file system of 1 MiB in memory; skip without permission to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here; tests with an injected full disk run anyway")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def extractor():
    """Return the classifier of digits as an extractor."""
    from metrics.extractors import load_extractor

    return load_extractor("digits")


@pytest.fixture(scope="session")
def reference(extractor):
    """Return the statistics of real digits."""
    from metrics.references import load_reference

    return load_reference("digits", {"digits": extractor})


@pytest.fixture(scope="session")
def digits():
    """Return all real digits, uint8 [N, 1, 8, 8]."""
    from metrics.references import real_images

    return real_images("digits")


@pytest.fixture
def save_pngs(tmp_path):
    """Return a function that writes uint8 [N, 1, H, W] as tmp_path/name/000000.png, ...; it returns
    that folder."""

    def save(images, name="out"):
        folder = tmp_path / name
        folder.mkdir()
        for seed, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(folder / f"{seed:06d}.png")
        return folder

    return save
